"""Trains an imported nnU-Net further, by nnU-Net itself, from its own weights.

Every network that the version averages (its folds) learns from the same cases, one after the other.
What comes out is imported as the result folder before was. The new version keeps all classes of its
dataset; those that are no organs of ours fade, as nothing teaches them.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_core.atomic_writes import new_folder, replace_file
from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError, ConfigurationError, Conflict, InvalidInput
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import OrganScheme
from atlas_core.store import CaseStore
from atlas_models.config import LabelWeights

from atlas_flows.models.store import ModelStore
from atlas_flows.models.training_order import TrainingOrder
from atlas_flows.settings import Places

if TYPE_CHECKING:
    from atlas_models.importing import TrainingSource
    from atlas_models.training import ChosenCase, NnunetCase, NnunetRun

STEPS, LEARNING_RATE = 12_500, 1e-3
"""Of further training, unless somebody says otherwise: fifty of nnU-Net's epochs, at a tenth of the
rate at which it begins."""

CASES_FILE = "cases.json"
"""In a run: which cases its raw data were written of."""


@dataclass(frozen=True)
class _Taught:
    organs: tuple[str, ...]
    label_weights: LabelWeights = field(default_factory=LabelWeights)


@dataclass(frozen=True)
class _Teaching:
    """Cases to learn from.

    Attributes:
        held: ids of those that are held out.
    """

    chosen: tuple[ChosenCase, ...]
    held: frozenset[str]
    store: CaseStore
    scheme: OrganScheme

    @property
    def cases(self) -> list[ChosenCase]:
        return [case for case in self.chosen if case.case.id not in self.held]


def train_nnunet_version(
    order: TrainingOrder,
    parent: tuple[ModelSpec, Path],
    version: int,
    here: Places,
    catalog: Catalog,
    store: ModelStore,
    on_step: Callable[[int, int], None],
) -> ModelSpec:
    """Train, import and register the next version of an nnU-Net.

    A run that was killed goes on where it was.

    Args:
        parent: the version that is trained further, and its folder.

    Raises:
        InvalidInput: no case to learn from, or nnU-Net failed.
        ConfigurationError: an override that nnU-Net's training has not.
        Conflict: the run folder holds a run on other labels.
    """
    from atlas_models.importing import import_nnunet, training_source
    from atlas_models.training import (
        PROVENANCE_FILE,
        Diverged,
        NnunetRun,
        data_key,
        provenance_file,
    )

    spec, folder = parent
    scheme = catalog.organ_scheme()
    source = training_source(folder)
    steps, rate = _overrides(order.overrides)
    teaching = _teaching(order, spec, catalog, CaseStore(here.store), scheme)
    run = NnunetRun(
        folder=order.run_folder or here.training_runs / f"{spec.name}-{version}",
        plans=source.plans,
        configuration=source.choices.configuration or "",
        dataset=source.dataset,
        weights=None,
        steps=steps,
        learning_rate=rate,
        trainer=source.origin.trainer,
        python=here.nnunet_python,
        loaders=order.loaders,
    )
    refused = _known_refusals(run.folder, teaching)
    starts = {fold: _start(run.folder, fold, folder) for fold in source.origin.folds}
    checkpoints = _trained(run, starts, source, teaching, refused, on_step)
    with store.incoming() as incoming:
        result = _result(checkpoints, incoming / "result")
        choices = source.choices.model_copy(update={"version": version})
        try:
            imported = import_nnunet(
                result, incoming / spec.name, choices, scheme.select(spec.organs)
            )
        except InvalidInput as error:
            if "not finite" in str(error):
                raise Diverged(str(error)) from None
            raise
        provenance = imported.provenance | {
            "parent": str(spec.ref),
            "data_sha256": data_key(teaching.chosen),
            "training_cases": str(len(teaching.cases) - len(refused)),
            "validation_cases": str(len(teaching.held)),
            "steps": str(steps),
            "learning_rate": str(rate),
        }
        record = provenance_file(
            imported.spec,
            {},
            provenance,
            [case for case in teaching.chosen if case.case.id not in refused],
            teaching.held,
            refused,
        )
        replace_file(incoming / spec.name / PROVENANCE_FILE, record)
        trained = store.add(incoming / spec.name, catalog, parent=spec.ref, provenance=provenance)
    for done in ("raw", "preprocessed"):  # copies of the cases; checkpoints and curves stay
        shutil.rmtree(run.folder / done, ignore_errors=True)
    return trained


def _overrides(given: Mapping[str, Any]) -> tuple[int, float]:
    known = {"steps": STEPS, "learning_rate": LEARNING_RATE}
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise ConfigurationError(
            f"nnU-Net's training has no field {unknown[0]!r}",
            expected=", ".join(known),
            remedy="everything else follows from the plans that were imported",
        )
    chosen = known | dict(given)
    return int(chosen["steps"]), float(chosen["learning_rate"])


def _teaching(
    order: TrainingOrder,
    spec: ModelSpec,
    catalog: Catalog,
    store: CaseStore,
    scheme: OrganScheme,
) -> _Teaching:
    from atlas_models.training import LabelChoice, choose_cases, is_validation, require_labelled

    chosen = choose_cases(
        catalog,
        _Taught(spec.organs),
        datasets=order.datasets,
        sources=order.sources,
        labels=LabelChoice(order.labels),
    )
    ids = [case.case.id for case in chosen]
    held = frozenset(one for one in ids if is_validation(one, order.validation_share))
    if len(held) == len(ids):
        raise InvalidInput(
            "no case is left to train on",
            got=f"{len(held)} held out for validation",
            remedy="import more cases or hold out fewer",
        )
    teaching = _Teaching(chosen, held, store, scheme)
    # Of an organ without any label the background is never taught: it would grow everywhere.
    organs = (label.organ for case in teaching.cases for label in case.labels)
    require_labelled(_Taught(spec.organs), organs, "case that is not held out", fewer=False)
    return teaching


def _known_refusals(run_folder: Path, teaching: _Teaching) -> dict[str, str]:
    """Case id → why it was left out, by the raw data that a killed run has written.

    Raises:
        Conflict: they were written of other labels.
    """
    from atlas_models.training import data_key

    cases_file = run_folder / CASES_FILE
    if not cases_file.exists():
        return {}
    known = json.loads(cases_file.read_bytes())
    if known["data_sha256"] != data_key(teaching.cases):
        raise Conflict(
            "the run folder holds a training on other labels",
            case=run_folder.name,
            remedy="name another, or delete it",
        )
    return dict(known["refused"])


def _start(run_folder: Path, fold: str, model: Path) -> Path:
    """The weights that a fold starts from, in a file that nnU-Net's environment can read."""
    import torch
    from atlas_models.importing import network_of

    start = run_folder / f"{fold}.pth"
    if not start.exists():
        buffer = io.BytesIO()
        torch.save({"network_weights": network_of(model, fold)}, buffer)
        run_folder.mkdir(parents=True, exist_ok=True)
        replace_file(start, buffer.getvalue())
    return start


def _trained(
    run: NnunetRun,
    starts: Mapping[str, Path],
    source: TrainingSource,
    teaching: _Teaching,
    refused: dict[str, str],
    on_step: Callable[[int, int], None],
) -> dict[str, Path]:
    """Fold → its new checkpoint. Cases that cannot be read are added to `refused`."""
    from atlas_models.training import data_key, train_by_nnunet, write_raw

    def write_cases(folder: Path) -> None:
        cases = _readable(teaching, refused)
        write_raw(folder, cases, source.dataset, source.origin.values, source.flipped)
        note = {"data_sha256": data_key(teaching.cases), "refused": refused}
        replace_file(run.folder / CASES_FILE, json.dumps(note).encode())

    total, done = run.epochs * run.iterations, 0

    def say(epoch: int, epochs: int) -> None:
        on_step(done + epoch * run.iterations, total * len(starts))

    checkpoints = {}
    for fold, start in starts.items():
        checkpoints[fold] = train_by_nnunet(
            replace(run, weights=start, network=fold), write_cases, say
        )
        done += total
    return checkpoints


def _readable(teaching: _Teaching, refused: dict[str, str]) -> Iterator[NnunetCase]:
    """The cases; a damaged one is left out and named."""
    from atlas_models.training import NnunetCase, read_masks

    count = 0
    for chosen in teaching.cases:
        try:
            ct, masks = read_masks(teaching.store, chosen, teaching.scheme)
        except AtlasError as error:
            refused[chosen.case.id] = str(error)
            continue
        count += 1
        yield NnunetCase(chosen.case.id, ct.voxels, masks, ct.geometry)
    if not count:
        raise InvalidInput("no case is left to train on", got="; ".join(refused.values())[:500])


def _result(checkpoints: Mapping[str, Path], folder: Path) -> Path:
    """The folds as one result folder of nnU-Net."""
    with new_folder(folder) as fresh:
        for fold, checkpoint in checkpoints.items():
            (fresh / fold).mkdir()
            shutil.copyfile(checkpoint, fresh / fold / checkpoint.name)
            for name in ("plans.json", "dataset.json"):
                shutil.copyfile(checkpoint.parent.parent / name, fresh / name)
    return folder
