"""The original labels of one case, read from its mask files and label map, organ by organ.

Masks are never whole in memory: they come in pieces, out of files on the grid of their CT. A label
that lies otherwise is first written anew on that grid.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atlas_core.errors import AtlasError, GridMismatch, LimitExceeded, UnknownLabel
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import (
    AffineSource,
    SlabWriter,
    label_dtype,
    read_header,
    read_label,
    read_label_pieces,
    read_label_values,
    write_volume,
)
from atlas_core.imaging.label_maps import organ_mask, require_known_labels
from atlas_core.imaging.resampling import resample_label
from atlas_core.importing.ct_files import CtFile
from atlas_core.importing.paired_organs import MaskPieces, split_sides
from atlas_core.importing.presets import LabelMap, Structure
from atlas_core.organs import BACKGROUND

MAX_RESAMPLED_RATIO: Final = 8
"""A label that is resampled has at most so many voxels for one of its CT: twice as fine along each
axis. It is whole in memory."""

SLAB_VOXELS: Final = 1 << 22
"""A label in another axis order is turned in slabs of about so many voxels."""

MAX_PLANE_VOXELS: Final = 1 << 24
"""Largest plane (4096×4096) of such a label: a slab is at least one plane."""


@dataclass(frozen=True)
class LabelFiles:
    """Label files of one case, and what they mean.

    Attributes:
        masks: file name without suffix → mask of one structure.
        label_map: all structures in one file.
        meaning: the organs behind names and values.
        unknown: names of masks that mean nothing here.
    """

    masks: Mapping[str, Path]
    label_map: Path | None
    meaning: LabelMap
    unknown: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reports:
    """Callbacks for files that are refused, or deserve a look.

    Attributes:
        refuse, leave_out, warn: called with the file and the reason.
    """

    refuse: Callable[[Path, str], None]
    leave_out: Callable[[Path, str], None]
    warn: Callable[[Path, str], None]


def original_masks(
    files: LabelFiles,
    ct: CtFile,
    reports: Reports,
    scratch: Path,
    *,
    resample: bool = False,
    affine: AffineSource | None = None,
) -> Iterator[tuple[str, MaskPieces]]:
    """Every annotated organ with its mask on the grid of `ct`, one at a time.

    An empty mask file counts too: it states that the patient lacks the organ. So does a label map
    without the organ's value, unless its dataset is partially annotated. Where both kinds of file
    have an organ, the mask file is used. A file that cannot be used is reported and left out.

    Args:
        scratch: folder for files that are written anew on the CT's grid; masks are read from it.
        resample: put a label that lies on another grid onto the CT's instead of refusing it.
        affine: which affine counts where a header has two of different size.
    """
    reader = _Reader(ct, reports, scratch, resample, affine)
    done: set[str] = set()
    for found in (_from_masks(files, reader), _from_label_map(files, reader)):
        before = frozenset(done)
        for structure in found:
            for organ, mask in reader.organs(structure):
                done.add(organ)
                if organ not in before:
                    yield organ, mask


@dataclass(frozen=True)
class _Structure:
    """What a label file holds: an organ, or left and right in one."""

    path: Path
    organs: Structure
    mask: MaskPieces


@dataclass(frozen=True)
class _Label:
    """A label file on the CT's grid, and the values that occur in it."""

    path: Path
    values: tuple[int, ...]

    def mask(self, values: list[int]) -> Iterator[NDArray[np.bool_]]:
        """Pieces of the mask of `values`."""
        for piece in read_label_pieces(self.path):
            yield organ_mask(piece, values)


@dataclass(frozen=True)
class _Reader:
    """Brings label files onto the grid of one CT and reports those that cannot be used."""

    ct: CtFile
    reports: Reports
    scratch: Path
    resample: bool
    affine: AffineSource | None

    def read(self, path: Path) -> _Label | None:
        """The label on the CT's grid, or None."""
        try:
            return self._on_grid(path)
        except AtlasError as error:
            self.reports.refuse(path, str(error))
        return None

    def mask(self, path: Path) -> MaskPieces | None:
        """A mask on the CT's grid, or None. Its one value may be 1, 255 or any other."""
        label = self.read(path)
        if label is None:
            return None
        values = [value for value in label.values if value != BACKGROUND]
        if len(values) > 1:
            error = UnknownLabel(
                "a mask holds one structure",
                expected="0 and one other value",
                got=label.values,
                remedy="store each structure in a mask of its own, or all in one label map",
            )
            self.reports.refuse(path, str(error))
            return None
        return partial(label.mask, values)

    def organs(self, structure: _Structure) -> Iterator[tuple[str, MaskPieces]]:
        """The structure itself, or both sides out of one."""
        if len(structure.organs) == 1:
            yield structure.organs[0], structure.mask
            return
        try:
            midline_mm = self.ct.midline_mm()
            sides = split_sides(structure.mask, self.ct.geometry, midline_mm=midline_mm)
        except AtlasError as error:
            self.reports.refuse(structure.path, str(error))
            return
        yield from zip(structure.organs, sides, strict=True)

    def _on_grid(self, path: Path) -> _Label:
        header = read_header(path)
        grid, found = self.ct.geometry, header.placed(self.affine)
        for warning in header.warnings:
            self.reports.warn(path, warning)
        if grid.same_grid(found):
            return _Label(path, read_label_values(path))
        if grid.canonical().same_grid(found.canonical()):
            # The same voxels in another axis order: turned, nothing is resampled.
            return self._turned(path, found)
        if self._is_cropped(found):
            return self._placed(path, found)
        if not self.resample:
            grid.require_same_grid(found, this="CT", that="label", case="")
        return self._resampled(path, found)

    def _is_cropped(self, found: VolumeGeometry) -> bool:
        """Whether a label covers a box of its CT's voxels, and its header says which.

        One that begins where its CT does may as well be the end of a scan with the origin of the
        whole, as crops that forget theirs are: that is not assumed.
        """
        grid = self.ct.geometry
        if np.allclose(found.matrix[:3, 3], grid.matrix[:3, 3], atol=0.5 * min(grid.spacing_mm)):
            return False
        try:
            grid.canonical().start_of(found.canonical(), this="CT", that="label")
        except GridMismatch:
            return False
        return True

    def _turned(self, path: Path, found: VolumeGeometry) -> _Label:
        """The label in the axis order of its CT, written slab by slab."""
        values = read_label_values(path)
        grid, (i, j, k) = self.ct.geometry, found.shape
        if i * j > MAX_PLANE_VOXELS:
            raise LimitExceeded(
                "a plane of the label is too large to be turned to its CT's axis order",
                expected=f"at most {MAX_PLANE_VOXELS} voxels",
                got=i * j,
                remedy="turn it to its CT's axis order first",
            )
        slices = max(1, SLAB_VOXELS // (i * j))
        canonical = found.axis_map.source.index(2)  # the axis along which slabs follow each other
        axis = grid.axis_map.source[canonical]
        falling = grid.axis_map.flip[canonical] != found.axis_map.flip[canonical]
        target = self._draft()
        start = 0
        with SlabWriter(target, grid, label_dtype(values)) as writer:
            for piece in read_label_pieces(path, piece_voxels=i * j * slices):
                slab = piece.astype(label_dtype(values)).reshape((i, j, -1), order="F")
                turned = grid.axis_map.from_canonical(found.axis_map.to_canonical(slab))
                stop = start + slab.shape[2]
                first, last = (k - stop, k - start) if falling else (start, stop)
                writer.write(axis, first, last, turned)
                start = stop
        return _Label(target, values)

    def _placed(self, path: Path, found: VolumeGeometry) -> _Label:
        """A label that was cropped to a box of its CT's voxels, with background around it."""
        grid = self.ct.geometry
        label = read_label(path, max_voxels=grid.voxels)
        box = grid.axis_map.from_canonical(found.axis_map.to_canonical(label.voxels))
        ends = np.array([[0, 0, 0, 1], [*np.array(found.shape) - 1, 1]], np.float64)
        x, y, z = (
            np.rint(ends @ (np.linalg.inv(grid.matrix) @ found.matrix).T)[:, :3].min(0).astype(int)
        )
        (i, j, k), (ni, nj, nk) = grid.shape, box.shape
        values = tuple(sorted({BACKGROUND, *label.values}))
        target, slices = self._draft(), max(1, SLAB_VOXELS // (i * j))
        with SlabWriter(target, grid, label_dtype(values)) as writer:
            for low in range(0, k, slices):
                high = min(k, low + slices)
                slab = np.zeros((i, j, high - low), label_dtype(values), order="F")
                first, last = max(low, z), min(high, z + nk)
                if first < last:
                    slab[x : x + ni, y : y + nj, first - low : last - low] = box[
                        :, :, first - z : last - z
                    ]
                writer.write(2, low, high, slab)
        return _Label(target, values)

    def _resampled(self, path: Path, found: VolumeGeometry) -> _Label:
        grid = self.ct.geometry
        label = read_label(path, max_voxels=MAX_RESAMPLED_RATIO * grid.voxels)
        voxels = resample_label(label.voxels, found, grid)
        if any(value != BACKGROUND for value in label.values) and not voxels.any():
            raise GridMismatch(
                "nothing of the label lies in the CT",
                expected=f"CT {grid}",
                got=f"label {found}",
                remedy="correct its affine, or pair it with its own CT (--pairs)",
            )
        target = self._draft()
        write_volume(target, voxels, grid)
        self.reports.warn(path, "resampled onto the grid of its CT")
        return _Label(target, read_label_values(target))

    def _draft(self) -> Path:
        return self.scratch / f"label-{secrets.token_hex(8)}.nii.gz"


def _from_masks(files: LabelFiles, reader: _Reader) -> Iterator[_Structure]:
    """Structures that have a mask file of their own.

    Of several files of one structure, the one named first in the map is the organ, the others are
    lesions in it: without the organ they do not count, and if one cannot be read, neither does it.
    """
    meaning = files.meaning.masks
    for structure in dict.fromkeys(meaning.values()):
        names = [name for name, named in meaning.items() if named == structure]
        if names[0] not in files.masks:
            continue
        masks = [reader.mask(files.masks[name]) for name in names if name in files.masks]
        readable = [mask for mask in masks if mask is not None]
        if len(readable) == len(masks):
            yield _Structure(files.masks[names[0]], structure, _union(readable))


def _union(masks: list[MaskPieces]) -> MaskPieces:
    def pieces() -> Iterator[NDArray[np.bool_]]:
        for parts in zip(*(mask() for mask in masks), strict=True):
            yield np.logical_or.reduce(parts)

    return masks[0] if len(masks) == 1 else pieces


def _from_label_map(files: LabelFiles, reader: _Reader) -> Iterator[_Structure]:
    """Structures of the label map; nothing if one of its values is unknown."""
    if files.label_map is None:
        return
    label = reader.read(files.label_map)
    if label is None:
        return
    meaning = files.meaning
    try:
        require_known_labels(label.values, meaning.values)
    except UnknownLabel as error:
        reader.reports.refuse(files.label_map, str(error))
        return
    unclear = {value: meaning.unclear[value] for value in label.values if value in meaning.unclear}
    if unclear:
        why = ", ".join(f"{value} ({name})" for value, name in unclear.items())
        reader.reports.leave_out(
            files.label_map,
            f"left out: value {why} leaves open where the organs are; correct it, or import with a "
            "preset that says what it means",
        )
        return
    for structure in dict.fromkeys(meaning.labels.values()):
        values = [value for value, named in meaning.labels.items() if named == structure]
        if not meaning.partial or set(values) & set(label.values):
            yield _Structure(files.label_map, structure, partial(label.mask, values))
