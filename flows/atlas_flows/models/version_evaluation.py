"""Versions of a model against the truth, predicted by the attention service as they are served."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from atlas_core.assembly import preferred
from atlas_core.catalog import (
    CaseAgreement,
    Catalog,
    Evaluation,
    now,
    training_labels,
    truth_digest,
)
from atlas_core.errors import AtlasError, InvalidInput, NotFound, Unavailable
from atlas_core.imaging import read_label
from atlas_core.model_spec import ModelRef, ModelSpec
from atlas_core.organs import OrganScheme
from atlas_core.records import Case, Label, LabelSource
from atlas_core.store import CaseStore
from atlas_models.evaluation import organ_agreement
from atlasloop.client import AttentionClient, AttentionServiceError
from numpy.typing import NDArray

TRUE_SOURCES = (LabelSource.ORIGINAL, LabelSource.REVISED)
"""What a person drew or confirmed; a pseudo label cannot judge the model that made it."""


@dataclass(frozen=True)
class EvaluationCase:
    """A case with the labels that count as its truth, one per organ."""

    case: Case
    labels: tuple[Label, ...]


def evaluation_cases(
    catalog: Catalog,
    organs: Sequence[str],
    *,
    dataset: str | None = None,
    without: Iterable[ModelRef] = (),
    limit: int | None = None,
) -> list[EvaluationCase]:
    """Cases with an original or revised label of any of `organs`, by id.

    Args:
        without: models from whose training cases none is taken: those are no test of them.
        limit: only the first N.

    Raises:
        NotFound: there is none.
    """
    seen = {label.case_id for model in without for label in training_labels(catalog, model)}
    found = []
    for case in catalog.cases(dataset):
        if case.id in seen:
            continue
        labels = _truth(catalog.labels(case.id), organs)
        if labels:
            found.append(EvaluationCase(case, labels))
    if not found:
        raise NotFound(
            "no case to evaluate on",
            expected="cases with original or revised labels that the models have not learnt from",
            got=f"{len(seen)} cases that they have learnt from" if seen else "none",
            remedy="import some with their labels, or keep a share out of training",
        )
    return found if limit is None else found[:limit]


def _truth(labels: Sequence[Label], organs: Sequence[str]) -> tuple[Label, ...]:
    by_organ: dict[str, list[Label]] = {}
    for label in labels:
        if label.source in TRUE_SOURCES and label.organ in organs:
            by_organ.setdefault(label.organ, []).append(label)
    return tuple(preferred(by_organ[organ]) for organ in organs if organ in by_organ)


def evaluate(
    spec: ModelSpec,
    cases: Sequence[EvaluationCase],
    client: AttentionClient,
    store: CaseStore,
    *,
    scheme: OrganScheme,
    on_case: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """One version, which Triton has loaded, on `cases`; nothing is written to the store.

    Args:
        scheme: of the atlas; says what the values of the predicted label map mean.
        on_case: called with the number of cases that are done, and of all.

    Raises:
        Unavailable: the service or the model does not answer.
        AtlasError: a label cannot be read, or lies on another grid than its CT.
    """
    results = []
    for done, case in enumerate(cases, start=1):
        results.append(_agreement(spec, case, client, store, scheme))
        if on_case is not None:
            on_case(done, len(cases))
    return Evaluation(
        model=spec.ref,
        truth_sha256=truth_digest(label for case in cases for label in case.labels),
        cases=tuple(results),
        created_at=now(),
    )


def _agreement(
    spec: ModelSpec,
    true: EvaluationCase,
    client: AttentionClient,
    store: CaseStore,
    scheme: OrganScheme,
) -> CaseAgreement:
    predicted = predicted_label(f"{spec.name}@{spec.version}", true.case, client)
    rows = []
    for label, truth in _masks(true, store):
        mask = predicted == scheme[label.organ].label
        rows.append(organ_agreement(label.organ, mask, truth, true.case.geometry.spacing_mm))
    return CaseAgreement(case_id=true.case.id, organs=tuple(rows))


def predicted_label(model: str, case: Case, client: AttentionClient) -> NDArray[np.uint8]:
    """The label map that one model (``NAME@T``) makes of a case, uint8 ``[i, j, k]``.

    Raises:
        Unavailable: the service or the model does not answer.
        InvalidInput: the service refuses the request.
    """
    label = np.zeros(case.shape, np.uint8, order="F")
    try:
        with client.stream_case(case.id, models=[model], organs=()) as slabs:
            for slab in slabs:
                where = [slice(None)] * 3
                where[slab.axis] = slice(slab.start, slab.stop)
                label[tuple(where)] = slab.label
    except AttentionServiceError as error:
        kind = Unavailable if error.retryable else InvalidInput
        raise kind(f"model {model} cannot be evaluated", case=case.id, got=error) from None
    return label


def _masks(true: EvaluationCase, store: CaseStore) -> Iterator[tuple[Label, NDArray[np.bool_]]]:
    for label in true.labels:
        try:
            volume = read_label(store.path(label.path))
            true.case.geometry.require_same_grid(
                volume.geometry, this="CT", that="label", case=true.case.id
            )
        except AtlasError as error:
            raise error.with_case(true.case.id) from None
        yield label, volume.voxels == label.value


def on_the_same_truth(evaluations: Mapping[ModelRef, Sequence[Evaluation]]) -> list[Evaluation]:
    """Of each model the newest evaluation, all on one truth.

    Raises:
        NotFound: there is no such set.
    """
    common = set.intersection(
        *({evaluation.truth_sha256 for evaluation in known} for known in evaluations.values())
    )
    for candidate in next(iter(evaluations.values())):
        if candidate.truth_sha256 in common:
            return [
                next(e for e in known if e.truth_sha256 == candidate.truth_sha256)
                for known in evaluations.values()
            ]
    names = [f"{model.name}@{model.version}" for model in evaluations]
    raise NotFound(
        f"{' and '.join(names)} were not evaluated on the same cases and labels",
        remedy=f"run `atlasloop models evaluate {' '.join(names)}`",
    )
