"""Phantoms as a dataset in a folder: which cases, which of their organs are labelled, the truth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from atlas_core.atomic_writes import new_folder, replace_file
from atlas_core.errors import Conflict, InvalidInput
from atlas_core.imaging import write_volume
from atlas_core.phantoms.drawing import DRAWN_KINDS, draw_phantom
from atlas_core.phantoms.organs import HARD_KINDS, PHANTOM_ORGANS, TAIL_KINDS, Kind
from atlas_core.phantoms.people import Anatomy
from atlas_core.phantoms.scanner import Phantom, PhantomGrid, make_phantom

Labels = Literal["truth", "none", "partial"]


PARTIAL_DATASETS: Mapping[str, tuple[str, ...]] = {
    # Named after what they imitate: which organs LiTS, KiTS, MSD and BTCV annotate.
    "phantom_liver": ("liver",),
    "phantom_kidneys": ("kidney_left", "kidney_right"),
    "phantom_spleen": ("spleen",),
    "phantom_pancreas": ("pancreas",),
    "phantom_all": PHANTOM_ORGANS.names,
}
"""Sub-folder and annotated organs of each dataset that ``labels="partial"`` writes."""


INDEX_NAME = "phantoms.json"


CT_NAME = "ct.nii.gz"


TRUTH_NAME = "combined_labels.nii.gz"


@dataclass(frozen=True)
class PlannedCase:
    """One case before it is made: name, seed and kind follow from the run's seed and the number."""

    name: str
    number: int
    seed: int
    kind: Kind


def case_plan(
    number: int, seed: int, hard_share: float = 0.1, kinds: Sequence[Kind] = HARD_KINDS
) -> PlannedCase:
    """Case `number` (from 1) of the run `seed`; it does not depend on how many cases there are.

    Of every run of cases a share `hard_share` is hard, evenly spread, its `kinds` taken in turn.

    Raises:
        InvalidInput: a number below 1, a negative seed, a share outside 0..1.
    """
    if number < 1 or seed < 0 or not 0.0 <= hard_share <= 1.0:
        raise InvalidInput(
            "implausible phantom plan",
            expected="number >= 1, seed >= 0, 0 <= hard_share <= 1",
            got=(number, seed, hard_share),
        )
    case_seed = int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])
    # In whole numbers: a share such as 0.1 has no exact float, and its multiples must not drift.
    share = round(hard_share * 10_000_000)
    before, after = (number - 1) * share // 10_000_000, number * share // 10_000_000
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(kinds))
    kind = kinds[int(order[before % len(kinds)])] if after > before else Kind.ORDINARY
    # JSON readers keep 53 bits of an integer.
    return PlannedCase(f"PHANTOM_{number:08d}", number, case_seed >> 11, kind)


def write_phantoms(
    folder: Path,
    cases: int,
    seed: int,
    *,
    hard_share: float = 0.1,
    tail: bool = False,
    kinds: Sequence[Kind] = (),
    labels: Labels = "truth",
    truth_folder: Path | None = None,
    grid: PhantomGrid | None = None,
    anatomies: Sequence[Anatomy] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, object]]:
    """Write phantoms as a dataset in the AbdomenAtlas layout; complete cases are kept.

    ``<folder>/PHANTOM_00000001/ct.nii.gz`` with, by `labels`:
    ``truth``: ``segmentations/<organ>.nii.gz`` for all organs; ``none``: nothing beside the CT;
    ``partial``: the cases are dealt out to the sub-folders of `PARTIAL_DATASETS`, each with the
    masks of its organs only. ``<folder>/phantoms.json`` lists kind, phase, seed and true volumes.

    Args:
        tail: hard cases are of all kinds, also of those that real archives hold: children,
            mirrored patients, wrong headers, motion and the like; else of the paper's Fig. 5 only.
        kinds: hard cases are of these kinds, in turn, instead.
        truth_folder: also write ``<truth_folder>/PHANTOM_…/combined_labels.nii.gz`` (label ids of
            `PHANTOM_ORGANS`) with a copy of the list: what predictions are measured against.
        anatomies: draw the cases from these people, one after another, instead of from nothing;
            hard cases are then of `DRAWN_KINDS`.
        on_progress: called with (cases done, cases asked for) after each.

    Returns:
        The list as written, one entry per case.
    """
    run = _Run(
        folder, seed, hard_share, tail, tuple(kinds), labels, truth_folder, grid or PhantomGrid(),
        tuple(anatomies),
    )  # fmt: skip
    entries = run.written()
    usual = DRAWN_KINDS if anatomies else TAIL_KINDS if tail else HARD_KINDS
    for number in range(1, cases + 1):
        plan = case_plan(number, seed, hard_share, kinds or usual)
        if plan.name not in entries:
            entries[plan.name] = run.write(plan)
            run.list(entries)
        if on_progress is not None:
            on_progress(number, cases)
    run.list(entries)
    return list(entries.values())


@dataclass(frozen=True)
class _Run:
    """Where and how the cases of one call are written."""

    folder: Path
    seed: int
    hard_share: float
    tail: bool
    kinds: tuple[Kind, ...]
    labels: Labels
    truth_folder: Path | None
    grid: PhantomGrid
    anatomies: tuple[Anatomy, ...]

    @property
    def _settings(self) -> dict[str, object]:
        """What a second call must repeat to continue in the same folder."""
        drawn = [[anatomy.name, anatomy.sha256] for anatomy in self.anatomies]
        return {
            "seed": self.seed,
            "hard_share": self.hard_share,
            "labels": self.labels,
            "columns": self.grid.columns,
            "slice_mm": self.grid.slice_mm,
            "axis_codes": self.grid.axis_codes,
            # Lists of before have no such entry.
            **({"tail": True} if self.tail else {}),
            **({"kinds": [kind.value for kind in self.kinds]} if self.kinds else {}),
            **({"anatomies": drawn} if drawn else {}),
        }

    def written(self) -> dict[str, dict[str, object]]:
        """Entries of the cases that are complete, by name.

        Raises:
            Conflict: the folder holds phantoms made with other settings.
        """
        path = self.folder / INDEX_NAME
        if not path.exists():
            return {}
        index = json.loads(path.read_text())
        found = {name: value for name, value in index.items() if name != "cases"}
        if found != self._settings:
            raise Conflict(
                "the folder holds other phantoms",
                expected=self._settings,
                got=found,
                remedy="choose another folder, or the same settings to go on",
            )
        return {entry["case"]: entry for entry in index["cases"] if self._complete(entry)}

    def _complete(self, entry: dict[str, str]) -> bool:
        paths = [self.folder / entry["dataset"] / entry["case"] / CT_NAME]
        if self.truth_folder is not None:
            paths.append(self.truth_folder / entry["case"] / TRUTH_NAME)
        return all(path.exists() for path in paths)

    def write(self, plan: PlannedCase) -> dict[str, object]:
        """Make and write one case; returns its entry in the list."""
        phantom, anatomy = self._phantom(plan)
        dataset, organs = _dataset_of(plan, self.labels)
        if self.truth_folder is not None:
            truth_case = self.truth_folder / plan.name
            truth_case.mkdir(parents=True, exist_ok=True)
            write_volume(truth_case / TRUTH_NAME, phantom.truth, phantom.geometry)
        _write_case(self.folder / dataset / plan.name, phantom, organs)
        return {
            "case": plan.name,
            "dataset": dataset,
            "kind": plan.kind.value,
            "phase": phantom.phase.value,
            "seed": plan.seed,
            "axis_codes": phantom.geometry.axis_codes,
            "labelled": list(organs),
            "volumes_ml": phantom.volumes_ml(),
            **({} if anatomy is None else {"anatomy": anatomy.name}),
        }

    def _phantom(self, plan: PlannedCase) -> tuple[Phantom, Anatomy | None]:
        if not self.anatomies:
            return make_phantom(plan.seed, plan.kind, grid=self.grid), None
        anatomy = self.anatomies[(plan.number - 1) % len(self.anatomies)]
        return draw_phantom(anatomy, plan.seed, plan.kind, self.grid), anatomy

    def list(self, entries: Mapping[str, dict[str, object]]) -> None:
        """Write the list of cases, beside the CTs and beside the truth."""
        text = json.dumps({**self._settings, "cases": list(entries.values())}, indent=1)
        for place in (self.folder, self.truth_folder):
            if place is not None:
                replace_file(place / INDEX_NAME, f"{text}\n".encode(), mode=0o600)


def _dataset_of(plan: PlannedCase, labels: Labels) -> tuple[str, tuple[str, ...]]:
    """Sub-folder of a case (empty: none) and the organs that are labelled there."""
    if labels == "partial":
        names = tuple(PARTIAL_DATASETS)
        dataset = names[(plan.number - 1) % len(names)]
        return dataset, PARTIAL_DATASETS[dataset]
    return "", PHANTOM_ORGANS.names if labels == "truth" else ()


def _write_case(case_folder: Path, phantom: Phantom, organs: Sequence[str]) -> None:
    """Write a case folder: it is there completely or not at all."""
    with new_folder(case_folder) as fresh:
        masks = fresh / "segmentations"
        write_volume(fresh / CT_NAME, phantom.ct, phantom.geometry)
        for organ in organs:
            masks.mkdir(exist_ok=True)
            mask = (phantom.truth == PHANTOM_ORGANS[organ].label).astype(np.uint8)
            write_volume(masks / f"{organ}.nii.gz", mask, phantom.geometry)
        if case_folder.exists():
            # Left by a run that ended before it was listed, or whose truth was removed since.
            shutil.rmtree(case_folder)
