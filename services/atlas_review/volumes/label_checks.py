"""Masks and label maps that somebody sends, checked before anything is stored."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from atlas_core.errors import (
    AtlasError,
    CorruptFile,
    GridMismatch,
    UnknownLabel,
    UnsupportedVolume,
)
from atlas_core.geometry import Shape3, VolumeGeometry
from atlas_core.imaging import LabelVolume, Volume, read_header, read_label, read_segments
from atlas_core.organs import BACKGROUND, OrganScheme
from atlas_core.records import Case
from atlas_core.store import CaseStore

COPY_BYTES: Final = 1 << 20

LISTED_VALUES: Final = 8
"""Voxel values that an error lists at most."""


@dataclass(frozen=True)
class Upload:
    """A mask or label map that somebody has sent.

    Attributes:
        label: on the grid of the case's CT.
        segments: name and voxel value of each segment that the file itself names, as a
            ``.seg.nrrd`` of 3D Slicer does.
    """

    label: LabelVolume
    segments: list[tuple[str, int]]


def read_upload(store: CaseStore, content: BinaryIO, case: Case) -> Upload:
    """The mask or label map in an upload, as `label_on_grid`.

    It is copied into the store's ``.incoming`` and removed again; what a killed process leaves
    there is swept at the next start.
    """
    with store.incoming() as folder:
        path = folder / "upload"
        content.seek(0)
        with path.open("wb") as file:
            shutil.copyfileobj(content, file, COPY_BYTES)
        label = label_on_grid(path, case)
        return Upload(label, _named_segments(path))


def _named_segments(path: Path) -> list[tuple[str, int]]:
    with path.open("rb") as file:
        is_nrrd = file.read(5) == b"NRRD0"
    if not is_nrrd:
        return []
    try:
        return read_segments(path)
    except UnsupportedVolume:  # a label map without segments
        return []


def label_on_grid(path: Path, case: Case) -> LabelVolume:
    """A mask or label map on the grid of the case's CT, reoriented to the CT's own axis order.

    One that was cropped to a box of the CT's voxels lies where its header says; around it there is
    background. The grids are compared before a voxel is read: a header that claims too much costs
    nothing.

    Raises:
        InvalidInput: it is not a volume of whole numbers that we read (`UnsupportedVolume`,
            `CorruptFile`), or lies on another grid (`GridMismatch`); the error names the case.
    """
    try:
        if path.stat().st_size == 0:
            raise CorruptFile("the file is empty")
        grid = case.geometry
        start = _start_in(grid, read_header(path).geometry, case)
        label = read_label(path, max_voxels=grid.voxels)
    except AtlasError as error:
        raise error.with_case(case.id) from None
    if grid.same_grid(label.geometry):
        return LabelVolume(label.voxels, grid, label.values)
    canonical = label.geometry.axis_map.to_canonical(label.voxels)
    values = label.values
    if canonical.shape != grid.canonical().shape:
        box = canonical
        canonical = np.zeros(grid.canonical().shape, box.dtype, order="F")
        canonical[tuple(map(slice, start, np.add(start, box.shape)))] = box
        values = tuple(sorted({BACKGROUND, *values}))
    return LabelVolume(grid.axis_map.from_canonical(canonical), grid, values)


def _start_in(grid: VolumeGeometry, found: VolumeGeometry, case: Case) -> Shape3:
    """Where a label begins on the CT's canonical grid, as its header has it."""
    try:
        return grid.canonical().start_of(found.canonical(), this="CT", that="mask", case=case.id)
    except GridMismatch:
        # Says what differs; both are in the axis order that their authors know.
        grid.require_same_grid(found, this="CT", that="mask", case=case.id)
        raise


def organ_mask(label: LabelVolume, case: Case, value: int | None) -> Volume:
    """The mask of one organ: the voxels of `value`, or (None) of the only value that occurs.

    Returns:
        uint8 ``[i, j, k]``, 0 and 1, on the CT's grid.

    Raises:
        UnknownLabel: several values occur and none was named, or the named one does not occur
            while others do.
    """
    values = [found for found in label.values if found != BACKGROUND]
    if value is None and len(values) > 1:
        raise UnknownLabel(
            "a mask of one organ holds one value",
            case=case.id,
            expected="0 and one other value",
            got=_listed(values),
            remedy="name the organ's value (value=…), or hand in a mask of this organ only",
        )
    if value is None:
        mask = label.voxels != BACKGROUND
    else:
        mask = label.voxels == value
        if values and value not in values:
            raise UnknownLabel(
                "the mask does not hold the value that was named",
                case=case.id,
                expected=value,
                got=_listed(values),
            )
    return Volume(mask.astype(np.uint8), case.geometry)


def require_organ_values(label: LabelVolume, case: Case, scheme: OrganScheme) -> None:
    """Raise `UnknownLabel` if a label map holds a value that no organ of `scheme` has."""
    expected = {BACKGROUND, *scheme.labels}
    unknown = sorted(set(label.values) - expected)
    if unknown:
        raise UnknownLabel(
            "the label map holds values that are no organ",
            case=case.id,
            expected=", ".join(str(value) for value in sorted(expected)),
            got=_listed(unknown),
        )


def _listed(values: list[int]) -> str:
    return ", ".join(str(value) for value in values[:LISTED_VALUES])
