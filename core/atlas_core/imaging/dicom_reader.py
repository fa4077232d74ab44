"""DICOM CT series → volumes: files of one series in, Hounsfield units on a RAS+ grid out.

A series becomes a volume only if its slices are one regular grid: what would have to be guessed
(two slices at one position, mixed sizes or orientations) is refused with the reason and the
numbers, and so are uneven gaps and gantry tilt, unless somebody asks that they be resampled. The
volume is written to a file a few slices at a time.

pydicom does the parsing and decoding. The geometry is ours: highdicom's reader of series covers the
same ground, but asks for all data sets in memory and does not say what is wrong in terms a user can
act on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from atlas_core.errors import LimitExceeded, NotFound, UnsupportedVolume
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.dicom_pixels import read_pixels
from atlas_core.imaging.dicom_series import CTS, DicomSeries, find_series, source_instances
from atlas_core.imaging.dicom_slices import (
    EXPORT_AGAIN,
    DicomSlice,
    looks_like_dicom,
    read_slices,
    slice_of,
)
from atlas_core.imaging.nifti_reader import MAX_VOXELS
from atlas_core.imaging.nifti_writer import SlabWriter
from atlas_core.imaging.straight_stacks import StraightStack

__all__ = [
    "CTS",
    "DicomSeries",
    "find_series",
    "grid_of",
    "looks_like_dicom",
    "source_instances",
    "the_series",
    "write_series",
]

SLAB_PIXELS = 1 << 23
"""Slices of so many pixels together are decoded at once: 32 of 512×512."""

ANGLE_TOLERANCE = 1e-3
"""Direction cosines may differ by this between slices (0.06°): they are written with few
decimals."""

SPACING_TOLERANCE = 1e-3
"""Share by which pixel spacings of one series may differ: rounding of decimal strings."""

POSITION_TOLERANCE_MM = 0.1
"""Slices may lie this far off a regular grid: positions are often rounded to 0.1 mm…"""

POSITION_TOLERANCE = 0.1
"""… but by no more than this share of the gap; a missing slice moves others by half a gap."""

TILT_TOLERANCE_PIXELS = 0.5
"""A stack whose last slice is shifted in its own plane against the first by less than half a pixel
is straight; gantry tilt shifts by many."""


def the_series(folder: Path) -> DicomSeries:
    """The only CT series below `folder`.

    Raises:
        NotFound: none is there.
        UnsupportedVolume: there are several.
    """
    found = [series for series in find_series(folder) if series.reason is None]
    if not found:
        raise NotFound(
            "no CT series in this folder", case=folder.name, remedy="name the folder of the series"
        )
    if len(found) > 1:
        raise UnsupportedVolume(
            "several CT series in this folder",
            case=folder.name,
            expected="one",
            got=len(found),
            remedy="pass the folder of one series",
        )
    return found[0]


def write_series(
    files: Sequence[Path],
    path: Path,
    *,
    known: Iterable[DicomSlice] = (),
    resample: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> str | None:
    """Writes the slices of one CT series, in any order, as one NIfTI volume, all or nothing.

    It holds voxels ``[i, j, k]`` (columns, rows, slices along the slice normal) in Hounsfield
    units: int16 or int32 where rescaling is by whole numbers, float32 otherwise. Padding outside
    the field of view is kept as it is. Spacing between slices comes from their positions, never
    from SliceThickness.

    Args:
        known: slices of files whose headers were read already (`DicomSeries.slices`).
        resample: bring slices with gantry tilt or uneven gaps to a regular grid.

    Returns:
        What was resampled, in a sentence; None: every voxel is as it was stored.

    Raises:
        NotFound: no file, or one that cannot be opened.
        UnsupportedVolume: not one regular grid of CT slices; says why.
        CorruptFile: a file or its pixel data cannot be read to the end.
        LimitExceeded: too many voxels, or a file too large.
        InvalidInput: rescaling gives infinite values.
    """
    if not files:
        raise NotFound("no DICOM files to read", remedy="name the folder of the series")
    read = {one.file: [one] for one in known}
    slices = _in_order([one for file in files for one in read.get(file) or read_slices(file)])
    irregular = _irregularity(slices)
    if irregular is not None and not resample:
        raise irregular
    straight = None if irregular is None else _straight(slices)
    geometry = _geometry(slices) if straight is None else _straight_geometry(slices, straight)
    if geometry.voxels > max_voxels:
        raise LimitExceeded(
            "series is too large",
            expected=f"at most {max_voxels} voxels",
            got=geometry.voxels,
            remedy="import it in parts, each a series of its own",
        )
    dtype = _hu_dtype(slices)
    slabs = _decoded(slices)
    if straight is not None:
        each = (slab[:, :, k] for slab in slabs for k in range(slab.shape[2]))
        slabs = (one[:, :, None] for one in straight.resampled(each, dtype))
    with SlabWriter(path, geometry, dtype) as writer:
        start = 0
        for slab in slabs:
            writer.write(2, start, start + slab.shape[2], slab)
            start += slab.shape[2]
    if irregular is None or straight is None:
        return None
    return (
        f"{irregular.what} (got {irregular.got}): resampled from {len(slices)} slices to "
        f"{len(straight.depths)}, {straight.step_mm:.3g} mm apart"
    )


def grid_of(datasets: Sequence[Dataset]) -> tuple[list[int], VolumeGeometry]:
    """Order of the slices of one CT series along their normal, and the grid `write_series` gives.

    Args:
        datasets: headers, in any order.

    Raises:
        UnsupportedVolume: as `write_series`.
    """
    slices = [slice_of(dataset) for dataset in datasets]
    if not slices:
        raise NotFound("no DICOM files to read", remedy="name the folder of the series")
    stacked = _in_order(slices)
    irregular = _irregularity(stacked)
    if irregular is not None:
        raise irregular
    number = {id(one): index for index, one in enumerate(slices)}
    return [number[id(one)] for one in stacked], _geometry(stacked)


def _in_order(slices: Sequence[DicomSlice]) -> list[DicomSlice]:
    """Slices of one stack along their normal.

    Raises:
        UnsupportedVolume: they are none.
    """
    _require_uniform(slices)
    if len(slices) < 2:
        raise UnsupportedVolume(
            "a single slice is no volume",
            expected="at least two slices",
            remedy="import the whole series",
        )
    stacked = sorted(slices, key=lambda one: float(np.dot(one.normal, one.position)))
    gaps, tolerance = _gaps(stacked)
    twice = int(np.count_nonzero(gaps <= tolerance))
    if twice:
        raise UnsupportedVolume(
            f"{twice} slices lie at the position of another",
            remedy="export each phase or reconstruction as a series of its own",
        )
    return stacked


def _require_uniform(slices: Sequence[DicomSlice]) -> None:
    """One size, one pixel spacing, one orthogonal orientation."""
    first = slices[0]
    if min(first.spacing) <= 0:
        raise UnsupportedVolume(
            "PixelSpacing is malformed",
            expected="two spacings above 0 mm",
            got=first.spacing,
            remedy=EXPORT_AGAIN,
        )
    axes = np.array([first.row, first.column])
    if not np.allclose(axes @ axes.T, np.eye(2), atol=ANGLE_TOLERANCE):
        raise UnsupportedVolume(
            "ImageOrientationPatient is no pair of orthogonal unit vectors", remedy=EXPORT_AGAIN
        )
    rules = (
        ("sizes", lambda s: s.size, 0.0, 0.0),
        ("pixel spacings", lambda s: s.spacing, 0.0, SPACING_TOLERANCE),
        ("orientations", lambda s: (*s.row, *s.column), ANGLE_TOLERANCE, 0.0),
    )
    for what, value_of, absolute, relative in rules:
        values = np.array([value_of(one) for one in slices], dtype=np.float64)
        other = ~np.isclose(values, values[0], atol=absolute, rtol=relative).all(axis=1)
        if other.any():
            raise UnsupportedVolume(
                f"slices of one series have different {what}",
                got=f"{int(other.sum())} of {len(slices)} differ from the first",
                remedy="export each acquisition as a series of its own",
            )


def _along(slices: Sequence[DicomSlice]) -> NDArray[np.float64]:
    """Where slices lie along their normal, in mm."""
    return np.array([one.position for one in slices]) @ slices[0].normal


def _gaps(slices: Sequence[DicomSlice]) -> tuple[NDArray[np.float64], float]:
    """Gaps between sorted slices, and by how much a position may be off; in mm."""
    gaps = np.diff(_along(slices))
    return gaps, min(POSITION_TOLERANCE_MM, POSITION_TOLERANCE * float(gaps.mean()))


def _is_even(slices: Sequence[DicomSlice]) -> bool:
    along = _along(slices)
    _, tolerance = _gaps(slices)
    regular = np.linspace(along[0], along[-1], len(along))
    return bool(np.abs(along - regular).max() <= tolerance)


def _shifts(slices: Sequence[DicomSlice]) -> NDArray[np.float64]:
    """(column, row) of each slice's first pixel against that of the first slice, in pixels."""
    first = slices[0]
    moved = np.array([one.position for one in slices]) - np.array(first.position)
    axes = np.array([first.row, first.column]) / np.array(first.spacing)[:, None]
    return np.asarray(moved @ axes.T, np.float64)


def _irregularity(slices: Sequence[DicomSlice]) -> UnsupportedVolume | None:
    """Why sorted slices are no regular grid; None if they are."""
    if not _is_even(slices):
        gaps, _ = _gaps(slices)
        return UnsupportedVolume(
            "gaps between slices are uneven",
            expected=f"{np.median(gaps):.3g} mm everywhere",
            got=f"{gaps.min():.3g}..{gaps.max():.3g} mm" + _tilt(slices, ", and tilted by {}"),
            remedy="slices are missing, or the series joins several scans: export it again, or "
            "import it with --resample",
        )
    if tilt := _tilt(slices, "{}"):
        return UnsupportedVolume(
            "slices are sheared against each other (gantry tilt)",
            expected="slices stacked along their normal",
            got=tilt,
            remedy="import the series with --resample",
        )
    return None


def _tilt(slices: Sequence[DicomSlice], text: str) -> str:
    """The angle in `text`; nothing where slices are straight."""
    first = slices[0]
    shifts = np.linalg.norm(_shifts(slices) * np.array(first.spacing), axis=1)
    if shifts.max() <= TILT_TOLERANCE_PIXELS * min(first.spacing):
        return ""
    step = np.array(slices[-1].position) - np.array(first.position)
    cosine = np.clip(step @ first.normal / np.linalg.norm(step), -1, 1)
    return text.format(f"{np.degrees(np.arccos(cosine)):.1f} degrees")


def _straight(slices: Sequence[DicomSlice]) -> StraightStack:
    along = _along(slices)
    gaps, _ = _gaps(slices)
    # Nothing that was scanned is lost on a grid as fine as the closest slices.
    step = float(gaps.mean() if _is_even(slices) else gaps.min())
    return StraightStack.of(along, _shifts(slices), slices[0].size, step)


def _straight_geometry(slices: Sequence[DicomSlice], straight: StraightStack) -> VolumeGeometry:
    first = slices[0]
    columns, rows = straight.first
    moved = (
        np.array(first.position)
        + columns * first.spacing[0] * np.array(first.row)
        + rows * first.spacing[1] * np.array(first.column)
    )
    return _grid(first, moved, straight.step_mm, straight.shape)


def _geometry(slices: Sequence[DicomSlice]) -> VolumeGeometry:
    """Grid of sorted slices that are regular."""
    first, along = slices[0], _along(slices)
    gap = float(along[-1] - along[0]) / (len(slices) - 1)
    return _grid(first, np.array(first.position), gap, (*first.size, len(slices)))


def _grid(
    first: DicomSlice, origin: NDArray[np.float64], gap: float, shape: tuple[int, int, int]
) -> VolumeGeometry:
    """DICOM's LPS becomes RAS by turning x and y."""
    lps = np.eye(4)
    lps[:3, 0] = np.array(first.row) * first.spacing[0]
    lps[:3, 1] = np.array(first.column) * first.spacing[1]
    lps[:3, 2] = first.normal * gap
    lps[:3, 3] = origin
    return VolumeGeometry.from_array(shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)


def _decoded(slices: Sequence[DicomSlice]) -> Iterator[NDArray[Any]]:
    """Hounsfield units ``[i, j, k]`` of sorted slices, some at a time, several decoded at once."""
    columns, rows = slices[0].size
    dtype = _hu_dtype(slices)
    count = max(1, SLAB_PIXELS // (columns * rows))

    def decode(one: DicomSlice) -> NDArray[Any]:
        stored = read_pixels(one)
        if dtype is np.float32:
            with np.errstate(over="ignore"):  # what is not finite is refused when it is written
                return (stored.astype(np.float64) * one.slope + one.intercept).astype(dtype)
        return (stored.astype(np.int64) * int(one.slope) + int(one.intercept)).astype(dtype)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(slices), count):
            slab = np.stack(list(pool.map(decode, slices[start : start + count])))
            yield slab.transpose(2, 1, 0)


def _hu_dtype(slices: Sequence[DicomSlice]) -> type[np.generic]:
    """The narrowest type that holds whatever the stored bits can say."""
    ends = [stored * one.slope + one.intercept for one in slices for stored in one.stored_range]
    if not all(one.slope.is_integer() and one.intercept.is_integer() for one in slices):
        return np.float32
    return next((t for t in (np.int16, np.int32) if _fits(t, ends)), np.float32)


def _fits(dtype: type[np.integer[Any]], values: Iterable[float]) -> bool:
    bounds = np.iinfo(dtype)
    return all(bounds.min <= value <= bounds.max for value in values)
