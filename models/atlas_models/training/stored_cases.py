"""Training cases out of catalog and case store: which labels count, prepared once and kept on disk.

Of the labels of an organ the preferred one counts: original over revised over pseudo, of one source
the newest; or, of a case that was assembled, what assembly made of it. Which file it was, and its
checksum, is recorded for the provenance of the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from atlas_core.assembly import Assemblies, Assembly, preferred
from atlas_core.atomic_writes import move_folder, scratch_folder, sync, synced_file
from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError, CorruptFile, InvalidInput, UnknownLabel
from atlas_core.imaging import LabelVolume, Volume, read_label, read_volume
from atlas_core.organs import BACKGROUND, OrganScheme
from atlas_core.records import Case, Label, LabelSource
from atlas_core.store import CaseStore
from numpy.typing import NDArray

from atlas_models.config import LabelWeights, TrainingConfig
from atlas_models.training.patches import TrainingCase, case_of_masks

CACHE_FORMAT = 1
"""Raised whenever cases are prepared in another way: what was kept before is then prepared anew."""

SPLIT_BITS = 32


class LabelChoice(StrEnum):
    """Which labels a case is trained on."""

    IN_FORCE = "in_force"
    """The preferred label file of each organ, as it is."""
    ASSEMBLED = "assembled"
    """The assembled map: overlaps between organs are settled, pseudo labels post-processed. Each
    organ has the weight of the source that it was assembled from."""


class Taught(Protocol):
    """What a network can learn: its organs, and how much it heeds each source."""

    @property
    def organs(self) -> tuple[str, ...]: ...

    @property
    def label_weights(self) -> LabelWeights: ...


@dataclass(frozen=True)
class ChosenCase:
    """A case and, for every organ that it can teach, the label that counts."""

    case: Case
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class StoredCases:
    """Cases ready to train on.

    Attributes:
        training, validation: prepared.
        chosen: all of them with their labels, by case id.
        refused: case id → why it could not be used.
    """

    training: tuple[TrainingCase, ...]
    validation: tuple[TrainingCase, ...]
    chosen: tuple[ChosenCase, ...]
    refused: dict[str, str]

    @property
    def labels(self) -> tuple[Label, ...]:
        return tuple(label for chosen in self.chosen for label in chosen.labels)

    @property
    def data_key(self) -> str:
        """SHA-256 over the CTs and labels, which identifies the data."""
        return data_key(self.chosen)


def data_key(cases: Iterable[ChosenCase]) -> str:
    """SHA-256 over CTs and labels, which identifies the data."""
    digest = hashlib.sha256()
    for chosen in cases:
        digest.update(f"{chosen.case.id} {chosen.case.content_sha256}\n".encode())
        for label in chosen.labels:
            digest.update(f"{label.organ} {label.source.value} {label.sha256}\n".encode())
    return digest.hexdigest()


def choose_cases(
    catalog: Catalog,
    config: Taught,
    *,
    datasets: Sequence[str] = (),
    sources: Iterable[LabelSource] = (LabelSource.ORIGINAL, LabelSource.REVISED),
    labels: LabelChoice = LabelChoice.IN_FORCE,
) -> tuple[ChosenCase, ...]:
    """Every case that has a label to learn from, by id.

    Args:
        datasets: only their cases; empty: all.
        sources: labels of other sources are not looked at, nor are those of weight 0.
        labels: the label files, or the assembled map; cases that were never assembled have none.

    Raises:
        NotFound: an unknown dataset.
        InvalidInput: no case has such a label.
    """
    for name in datasets:
        catalog.dataset(name)
    wanted = {source for source in sources if config.label_weights.of(source) > 0}
    cases = [case for name in datasets or (None,) for case in catalog.cases(name)]
    scheme = catalog.organ_scheme()
    assemblies: dict[str, Assembly] = {}
    if labels is LabelChoice.ASSEMBLED:
        assemblies = Assemblies(catalog).of_cases([case.id for case in cases])

    def labels_of(case: Case) -> list[Label]:
        if labels is LabelChoice.IN_FORCE:
            return catalog.labels(case.id)
        assembly = assemblies.get(case.id)
        return [] if assembly is None else assembled_labels(assembly, scheme)

    chosen = [
        ChosenCase(case, usable)
        for case in sorted(set(cases), key=lambda case: case.id)
        if (usable := _labels(labels_of(case), config, wanted))
    ]
    if not chosen:
        raise InvalidInput(
            "no case has a label to learn from",
            expected=f"{'/'.join(sorted(wanted)) or 'no'} labels of {', '.join(config.organs)}",
            got=f"{len(cases)} cases without",
            remedy="run `atlasloop assemble` first, or allow other label sources"
            if labels is LabelChoice.ASSEMBLED
            else "import labelled cases, or allow other label sources",
        )
    return tuple(chosen)


def require_labelled(
    config: Taught, labelled: Iterable[str], among: str, *, fewer: bool = True
) -> None:
    """Refuse to train an organ from nothing: its channel would become whatever it likes.

    Args:
        labelled: organs that some case has a label of.
        among: which cases, for people.
        fewer: the model may be trained on some of its organs alone.

    Raises:
        InvalidInput: names the organs without a label.
    """
    known = set(labelled)
    missing = [organ for organ in config.organs if organ not in known]
    if missing:
        there = ", ".join(organ for organ in config.organs if organ in known)
        others = "import or draw some, or allow other label sources"
        raise InvalidInput(
            f"no {among} has a label of {', '.join(missing)}",
            expected="a label to learn from of every organ of the model",
            got=f"labels of {there}",
            remedy=f"{others}; or train fewer organs: --set organs=[{there}]" if fewer else others,
        )


def _labels(labels: Iterable[Label], config: Taught, wanted: set[LabelSource]) -> tuple[Label, ...]:
    """The label that counts of every organ, in the order of the configuration."""
    allowed = [label for label in labels if label.source in wanted]
    by_organ = {
        organ: [label for label in allowed if label.organ == organ] for organ in config.organs
    }
    return tuple(preferred(found) for found in by_organ.values() if found)


def assembled_labels(assembly: Assembly, scheme: OrganScheme) -> list[Label]:
    """An assembled map as labels: every organ with the source that it was assembled from."""
    return [
        Label(
            case_id=assembly.case_id,
            organ=organ.organ,
            source=organ.source,
            path=assembly.path,
            value=scheme[organ.organ].label,
            sha256=assembly.sha256,
            voxels=organ.voxels,
            volume_ml=organ.volume_ml,
            models=organ.models,
            annotator=organ.author,
            created_at=assembly.created_at,
        )
        for organ in assembly.organs
    ]


def is_validation(case_id: str, share: float) -> bool:
    """Whether a case is held out: decided only by its id, so that it stays what it is when other
    cases come or go, and no fine-tuning ever learns from what an earlier version was measured on.

    >>> [is_validation(f"case-{n}", 0.5) for n in range(4)]
    [True, True, False, True]
    """
    number = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[: SPLIT_BITS // 8])
    return number < share * 2**SPLIT_BITS


def load_cases(
    store: CaseStore,
    chosen: Sequence[ChosenCase],
    config: TrainingConfig,
    *,
    validation_share: float,
    cache: Path | None = None,
    scheme: OrganScheme,
    on_case: Callable[[int, int], None] | None = None,
) -> StoredCases:
    """Read and prepare cases. A damaged one is left out and named; the others are used.

    Args:
        validation_share: of the cases, held out by id.
        cache: folder where prepared cases are kept; they are then read from there piece by piece
            (memory-mapped), so that a data set need not fit into memory. None: held in memory.
        on_case: called with the number of cases that are ready, and of all.

    Raises:
        InvalidInput: none is left to train on.
    """
    ready: list[tuple[ChosenCase, TrainingCase]] = []
    refused: dict[str, str] = {}
    for number, case in enumerate(chosen, start=1):
        try:
            ready.append((case, _kept(store, case, config, cache, scheme)))
        except AtlasError as error:
            refused[case.case.id] = str(error)
        if on_case is not None:
            on_case(number, len(chosen))
    held = [is_validation(case.case.id, validation_share) for case, _ in ready]
    training = tuple(case for (_, case), out in zip(ready, held, strict=True) if not out)
    if not training:
        raise InvalidInput(
            "no case is left to train on",
            expected="at least one",
            got=f"{len(refused)} refused, {sum(held)} held out for validation",
            remedy=next(iter(refused.values()), "import more cases or hold out fewer"),
        )
    validation = tuple(case for (_, case), out in zip(ready, held, strict=True) if out)
    return StoredCases(training, validation, tuple(case for case, _ in ready), refused)


def prepare_stored(
    store: CaseStore, chosen: ChosenCase, config: TrainingConfig, scheme: OrganScheme
) -> TrainingCase:
    """One case out of its files.

    Raises:
        NotFound, CorruptFile: a file is missing, damaged, or not the one on record.
        GridMismatch: a mask lies on another grid than its CT.
        UnknownLabel: a mask has values that mean nothing.
    """
    case = chosen.case
    ct, masks = read_masks(store, chosen, scheme)
    weights = {label.organ: config.label_weights.of(label.source) for label in chosen.labels}
    return case_of_masks(
        ct.voxels, masks, ct.geometry, config.spacing_mm, config.organs,
        weights=weights, case_id=case.id,
    )  # fmt: skip


def read_masks(
    store: CaseStore, chosen: ChosenCase, scheme: OrganScheme
) -> tuple[Volume, dict[str, NDArray[np.bool_]]]:
    """The CT of a case, and on its grid the mask of every organ that has a label.

    Raises:
        AtlasError: see `prepare_stored`.
    """
    case = chosen.case
    try:
        ct = read_volume(store.ct_path(case.id))
        return ct, {label.organ: _mask(store, label, case, scheme) for label in chosen.labels}
    except AtlasError as error:
        raise (error if error.case else error.with_case(case.id)) from error


def _mask(store: CaseStore, label: Label, case: Case, scheme: OrganScheme) -> NDArray[np.bool_]:
    """Where the organ of `label` is, on the grid of its CT."""
    path = store.path(label.path)
    name = f"{case.id}: {label.organ} ({label.source.value})"
    volume = read_label(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != label.sha256:
        raise CorruptFile(
            "the label is not the file on record", case=name, expected=label.sha256, got=found
        )
    case.geometry.require_same_grid(
        volume.geometry, this="CT", that=f"{label.organ} mask", case=case.id
    )
    _require_known(volume, label, name, scheme)
    return np.asarray(volume.voxels == label.value)


def _require_known(volume: LabelVolume, label: Label, name: str, scheme: OrganScheme) -> None:
    allowed = {BACKGROUND, label.value, *scheme.labels}
    unknown = sorted(set(volume.values) - allowed)
    if unknown:
        raise UnknownLabel(
            "the label file has values outside the scheme",
            case=name, expected=sorted(allowed), got=unknown,
        )  # fmt: skip


# --- prepared cases on disk -----------------------------------------------------------------------


def _kept(
    store: CaseStore,
    chosen: ChosenCase,
    config: TrainingConfig,
    cache: Path | None,
    scheme: OrganScheme,
) -> TrainingCase:
    """A prepared case, from the cache if it is there."""
    if cache is None:
        return prepare_stored(store, chosen, config, scheme)
    folder = cache / _cache_name(chosen, config, scheme)
    if not folder.is_dir():
        _keep(prepare_stored(store, chosen, config, scheme), folder)
    try:
        ct, target = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ct", "target"))
        weight = np.load(folder / "weight.npy")
    except (OSError, ValueError, EOFError) as error:
        raise CorruptFile(
            "damaged cache of prepared cases",
            case=chosen.case.id,
            got=str(error),
            remedy=f"delete {cache.name}",
        ) from error
    return TrainingCase(ct, target, weight, id=chosen.case.id)


def _cache_name(chosen: ChosenCase, config: TrainingConfig, scheme: OrganScheme) -> str:
    """Name of everything that a prepared case depends on."""
    described: list[Any] = [
        CACHE_FORMAT,
        chosen.case.content_sha256,
        list(config.organs),
        list(config.spacing_mm),
        [[label.organ, label.value, label.sha256] for label in chosen.labels],
        [config.label_weights.of(label.source) for label in chosen.labels],
        [[organ.name, organ.label] for organ in scheme],
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:40]


def _keep(case: TrainingCase, folder: Path) -> None:
    """Write a prepared case, all or nothing; another process may do the same at the same time."""
    with scratch_folder(folder.parent, prefix=".", mode=0o777) as draft:
        for name, array in (("ct", case.ct), ("target", case.target), ("weight", case.weight)):
            with synced_file(draft / f"{name}.npy") as file:
                np.save(file, array)
        sync(draft)
        # The other process's copy is as good, and stays.
        with contextlib.suppress(FileExistsError):
            move_folder(draft, folder)
