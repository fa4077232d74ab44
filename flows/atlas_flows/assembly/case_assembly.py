"""Assembling cases: choosing them, assembling one after the other, summing up (§3.2 ⑥).

Nothing here knows Prefect; `atlas_flows.assembly.flow` is a thin shell around these functions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from atlas_core.assembly import (
    Assemblies,
    Assembly,
    AssemblyInputs,
    PostProcessing,
    PseudoLabelMap,
    assemble_case,
    choose_labels,
    write_masks,
)
from atlas_core.catalog import Catalog, cases_by_id, chunks, labels_by_case, newest_scores
from atlas_core.errors import AtlasError, InvalidInput, NotFound, Unavailable
from atlas_core.frozen_model import FrozenModel
from atlas_core.records import Reading
from atlas_core.store import CaseStore
from pydantic import Field

from atlas_flows.runs import CaseOutcome, Outcome, ProgressCounter, RunSummary, candidates


class OrganSources(FrozenModel):
    """Where one organ comes from, over all assembled cases of a run, earlier ones included."""

    organ: str
    original: int = 0
    revised: int = 0
    pseudo: int = 0
    missing: int = Field(default=0, description="Cases without any label of it.")
    empty: int = Field(default=0, description="Cases whose label says that it is absent.")
    overlap_voxels: int = Field(default=0, description="Voxels that another organ got.")
    removed_voxels: int = Field(default=0, description="Voxels removed by post-processing.")


class AssemblySummary(RunSummary):
    """The result of one run; cases whose assembled map was up to date are skipped."""

    reading: Reading
    organs: tuple[OrganSources, ...]

    @property
    def assembled(self) -> int:
        """Cases that were assembled by this run."""
        return self.count(Outcome.ASSEMBLED)


@dataclass(frozen=True)
class AssemblyRequest:
    """Which cases are assembled, and how.

    Attributes:
        dataset: only its cases; None for all.
        cases: only these; empty for all of the dataset.
        reading: of the pseudo labels.
        models: NAME or NAME@T: pseudo labels of the newest ensemble of exactly these; empty: of
            the newest ensemble that scored the case.
        post_processing: organ → what is kept of its pseudo label.
        masks: also write one mask file per organ.
        force: assemble also what is up to date.
    """

    dataset: str | None = None
    cases: tuple[str, ...] = ()
    reading: Reading = Reading.PAPER
    models: tuple[str, ...] = ()
    post_processing: Mapping[str, PostProcessing] = field(default_factory=dict)
    masks: bool = False
    force: bool = False


@dataclass(frozen=True)
class AssemblyPlan:
    """Which cases are assembled.

    Attributes:
        request: what was asked for.
        candidates: all cases of the request.
        cases: those to be assembled.
    """

    request: AssemblyRequest
    candidates: tuple[str, ...]
    cases: tuple[str, ...]

    @property
    def skipped(self) -> int:
        return len(self.candidates) - len(self.cases)


@dataclass(frozen=True)
class AssemblyRun:
    """Everything that the shards of one run share. Safe to use from several threads."""

    request: AssemblyRequest
    catalog: Catalog
    store: CaseStore
    progress: ProgressCounter
    stop: threading.Event = field(default_factory=threading.Event)


def plan_assembly(request: AssemblyRequest, catalog: Catalog, store: CaseStore) -> AssemblyPlan:
    """The cases of `request` to assemble: those whose inputs have changed, or whose map is gone.

    Holds the labels of a few hundred cases at a time.

    Raises:
        NotFound: an unknown dataset or case; no case at all.
        UnknownLabel: post-processing of an unknown organ.
        InvalidInput: malformed models; nothing is scored and nothing can be assembled without.
    """
    scheme = catalog.organ_scheme()
    for organ in request.post_processing:
        scheme[organ]
    chosen = candidates(catalog, request.dataset, sorted(request.cases))
    if not chosen:
        raise NotFound("there is no case to assemble", remedy="bring some in: `atlasloop import`")
    to_do: list[str] = []
    for chunk in chunks(chosen):
        current = {} if request.force else Assemblies(catalog).of_cases(chunk)
        for case_id, inputs in inputs_of(request, catalog, store, chunk):
            if not _up_to_date(request, store, inputs, current.get(case_id)):
                to_do.append(case_id)
    return AssemblyPlan(request, tuple(chosen), tuple(to_do))


def inputs_of(
    request: AssemblyRequest, catalog: Catalog, store: CaseStore, case_ids: Sequence[str]
) -> Iterator[tuple[str, AssemblyInputs | AtlasError]]:
    """What each case of one chunk is assembled from, or why it cannot be."""
    scheme = catalog.organ_scheme()
    cases = cases_by_id(catalog, case_ids)
    labels = labels_by_case(catalog, case_ids)
    scores = newest_scores(catalog, case_ids, request.reading, request.models)
    for case_id in case_ids:
        try:
            if case_id not in cases:
                raise NotFound("the case was deleted meanwhile", case=case_id)
            prediction = _prediction(request, store, case_id, scores.get(case_id))
            yield (
                case_id,
                choose_labels(
                    cases[case_id],
                    labels[case_id],
                    prediction,
                    request.post_processing,
                    scheme,
                ),
            )
        except AtlasError as error:
            yield case_id, error


def assemble_shard(run: AssemblyRun, cases: Sequence[str]) -> list[CaseOutcome]:
    """Assemble `cases` one after the other; one that fails by its own fault does not stop the
    rest."""
    outcomes = []
    for case_id, inputs in inputs_of(run.request, run.catalog, run.store, cases):
        outcome = _assemble_one(run, case_id, inputs)
        run.progress.add(outcome)
        outcomes.append(outcome)
    return outcomes


def organ_sources(plan: AssemblyPlan, catalog: Catalog) -> tuple[OrganSources, ...]:
    """Where each organ comes from, over the assembled cases of `plan`."""
    counts = {
        name: dict.fromkeys(OrganSources.model_fields, 0) for name in catalog.organ_scheme().names
    }
    for chunk in chunks(plan.candidates):
        for assembly in Assemblies(catalog).of_cases(chunk).values():
            _count(counts, assembly)
    return tuple(
        OrganSources.model_validate(numbers | {"organ": name}) for name, numbers in counts.items()
    )


def _count(counts: dict[str, dict[str, int]], assembly: Assembly) -> None:
    for organ in assembly.organs:
        if organ.organ in counts:
            numbers = counts[organ.organ]
            numbers[organ.source.value] += 1
            numbers["empty"] += organ.voxels == 0
            numbers["overlap_voxels"] += organ.overlaps
            numbers["removed_voxels"] += organ.removed_voxels
    for name in assembly.missing:
        if name in counts:
            counts[name]["missing"] += 1


def _prediction(
    request: AssemblyRequest, store: CaseStore, case_id: str, score: tuple[str, int] | None
) -> PseudoLabelMap | None:
    if score is None:
        if request.models:
            raise InvalidInput(
                "the case is not scored by these models",
                case=case_id,
                expected=", ".join(request.models),
                remedy="run `atlasloop score` with them first, or name no models",
            )
        return None
    ensemble, number = score
    path = store.pseudo_label_path(case_id, request.reading, ensemble, number)
    return PseudoLabelMap(request.reading, ensemble, store.relative(path))


def _up_to_date(
    request: AssemblyRequest,
    store: CaseStore,
    inputs: AssemblyInputs | AtlasError,
    current: Assembly | None,
) -> bool:
    if current is None or isinstance(inputs, AtlasError):
        return False
    masks = (
        store.assembled_mask_path(current.case_id, current.inputs_sha256, organ.organ)
        for organ in current.organs
    )
    return (
        current.inputs_sha256 == inputs.sha256
        and store.path(current.path).is_file()
        and not (request.masks and any(not mask.is_file() for mask in masks))
    )


def _assemble_one(
    run: AssemblyRun, case_id: str, inputs: AssemblyInputs | AtlasError
) -> CaseOutcome:
    if run.stop.is_set():
        return CaseOutcome(
            case_id=case_id, outcome=Outcome.NOT_TRIED, message="the run ended before its turn"
        )
    if isinstance(inputs, AtlasError):
        return CaseOutcome(case_id=case_id, outcome=Outcome.FAILED, message=str(inputs))
    started = time.monotonic()
    try:
        assembly = assemble_case(run.store, inputs)
        if run.request.masks:
            write_masks(run.store, inputs.case, assembly, inputs.scheme)
        Assemblies(run.catalog).record(assembly)
    except Unavailable as error:
        run.stop.set()  # every other case would meet the same
        return CaseOutcome(case_id=case_id, outcome=Outcome.NOT_TRIED, message=str(error))
    except AtlasError as error:
        return CaseOutcome(case_id=case_id, outcome=Outcome.FAILED, message=str(error))
    except OSError as error:
        run.stop.set()
        message = f"the case store cannot be written: {error.strerror}"
        return CaseOutcome(case_id=case_id, outcome=Outcome.NOT_TRIED, message=message)
    return CaseOutcome(
        case_id=case_id,
        outcome=Outcome.ASSEMBLED,
        seconds=round(time.monotonic() - started, 3),
    )


def summarize(
    plan: AssemblyPlan, catalog: Catalog, outcomes: Iterable[CaseOutcome], seconds: float
) -> AssemblySummary:
    """The summary of a run over `plan`."""
    return AssemblySummary(
        reading=plan.request.reading,
        skipped=plan.skipped,
        outcomes=tuple(outcomes),
        organs=organ_sources(plan, catalog),
        seconds=round(seconds, 3),
    )
