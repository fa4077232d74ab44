"""Checks of cases in the store: the labels in force beside their CT, read once, in pieces."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from atlas_core.assembly import preferred
from atlas_core.catalog import Catalog, checked_inputs, record_check, warnings_by_case
from atlas_core.errors import AtlasError
from atlas_core.imaging import read_header, read_label_pieces, read_pieces
from atlas_core.importing.anatomy import LabelFindings, label_warnings
from atlas_core.importing.label_survey import OrganSurvey
from atlas_core.importing.plausibility import AIR_HU
from atlas_core.organs import OrganScheme
from atlas_core.records import Case, CaseWarning, CheckedPart, Label, WarningKind
from atlas_core.store import CaseStore

RULES: Final = 2
"""Of `anatomy`; with other rules, labels are checked again."""

PIECE_VOXELS: Final = 1 << 21

SAMPLED: Final = 61
"""One voxel in so many is looked at to find the middle of the body: a prime, which no row length is
a multiple of."""


def check_labels(
    catalog: Catalog, store: CaseStore, case: Case, *, again: bool = False
) -> tuple[CaseWarning, ...]:
    """Checks the labels in force of a case, of people or models, and records what it finds.

    What was looked at before is not read again.

    Args:
        again: look at it nevertheless.

    Returns:
        The warnings of the case, of earlier checks too.

    Raises:
        NotFound, CorruptFile: the CT or a label cannot be read; nothing is recorded.
        GridMismatch: a label lies on another grid than its CT.
    """
    scheme = catalog.organ_scheme()
    labels = _in_force(catalog.labels(case.id), scheme)
    digest = _digest(labels, scheme)
    if again or checked_inputs(catalog, case.id, CheckedPart.LABELS) != digest:
        try:
            found = label_warnings(_findings(store, case, labels), scheme) if labels else ()
        except AtlasError as error:
            raise (error if error.case else error.with_case(case.id)) from error
        record_check(catalog, case.id, CheckedPart.LABELS, digest, found)
    return warnings_by_case(catalog, [case.id]).get(case.id, ())


def record_scan(catalog: Catalog, case: Case, remarks: Sequence[str]) -> None:
    """Records what an import found remarkable about a scan itself."""
    found = [CaseWarning(kind=WarningKind.SCAN, text=remark) for remark in remarks]
    record_check(catalog, case.id, CheckedPart.SCAN, case.content_sha256, found)


def _in_force(labels: Sequence[Label], scheme: OrganScheme) -> list[Label]:
    """The label of each organ that counts, by file."""
    known = sorted((one for one in labels if one.organ in scheme), key=lambda one: one.organ)
    each = [preferred(of_organ) for _, of_organ in groupby(known, lambda one: one.organ)]
    return sorted((one for one in each if one.voxels), key=lambda one: (one.path, one.value))


def _digest(labels: Sequence[Label], scheme: OrganScheme) -> str:
    """Checksum of what a check of labels looks at."""
    files = [[label.organ, label.sha256, label.value] for label in labels]
    organs = [organ.model_dump(mode="json", exclude={"colour", "aliases"}) for organ in scheme]
    return hashlib.sha256(json.dumps([RULES, files, organs]).encode()).hexdigest()


def _findings(store: CaseStore, case: Case, labels: Sequence[Label]) -> LabelFindings:
    """Labels beside their CT, in one pass."""
    grid = case.geometry
    surveys = {label.organ: OrganSurvey(label.organ, grid) for label in labels}
    files = [(path, list(of_file)) for path, of_file in groupby(labels, lambda one: one.path)]
    for path, _ in files:
        found = read_header(store.path(path)).geometry
        grid.require_same_grid(found, this="CT", that="label", case=case.id)
    shared: Counter[tuple[str, str]] = Counter()
    middle = _Middle(case)
    for start, hu, pieces in _together(store.ct_path(case.id), [store.path(p) for p, _ in files]):
        middle.add(start, hu)
        owner = np.zeros(hu.size, np.uint8)
        for (_, of_file), piece in zip(files, pieces, strict=True):
            inside = np.flatnonzero(piece)
            values = piece[inside]
            for label in of_file:
                index = inside[values == label.value]
                surveys[label.organ].add(index + start, hu[index])
                _count_shared(owner, index, label.organ, labels, shared)
    findings = (survey.finding() for survey in surveys.values())
    organs = [finding for finding in findings if finding is not None]
    overlaps = {pair: voxels * grid.voxel_ml for pair, voxels in shared.items()}
    heights = grid.corners_mm()[:, 2]
    ends = (float(heights.min()), float(heights.max()))
    return LabelFindings(organs, overlaps, middle.x_mm, ends)


def _together(
    ct: Path, labels: Sequence[Path]
) -> Iterator[tuple[int, NDArray[Any], list[NDArray[Any]]]]:
    """Where each piece begins, of the CT, and of every label file."""
    with ExitStack() as opened:
        values = opened.enter_context(closing(read_pieces(ct, piece_voxels=PIECE_VOXELS)))
        masks = [
            opened.enter_context(closing(read_label_pieces(path, piece_voxels=PIECE_VOXELS)))
            for path in labels
        ]
        start = 0
        for hu, *pieces in zip(values, *masks, strict=True):
            yield start, hu, pieces
            start += hu.size


def _count_shared(
    owner: NDArray[np.uint8],
    index: NDArray[np.int64],
    organ: str,
    labels: Sequence[Label],
    shared: Counter[tuple[str, str]],
) -> None:
    """Counts voxels of `organ` that others had, by pairs; then they are its own."""
    names = [label.organ for label in labels]
    before = np.bincount(owner[index], minlength=1)
    for number in np.flatnonzero(before[1:]) + 1:
        shared[names[number - 1], organ] += int(before[number])
    owner[index] = names.index(organ) + 1


class _Middle:
    """Left-right centre of the body: mean x of what is denser than air."""

    def __init__(self, case: Case) -> None:
        self._grid = case.geometry
        self._count = 0
        self._total = np.zeros(3)

    def add(self, start: int, hu: NDArray[Any]) -> None:
        body = start + np.flatnonzero(hu[::SAMPLED] > AIR_HU) * SAMPLED
        self._count += body.size
        self._total += np.stack(np.unravel_index(body, self._grid.shape, order="F")).sum(1)

    @property
    def x_mm(self) -> float | None:
        if not self._count:
            return None
        return float((self._grid.matrix @ [*(self._total / self._count), 1])[0])
