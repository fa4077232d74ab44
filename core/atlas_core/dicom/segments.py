"""DICOM SEG → masks: binary segments and label maps, sparse, overlapping or cropped.

Fractional segmentations are probabilities or occupancies, and where an organ ends in them somebody
else must say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import UID, ImplicitVRLittleEndian

from atlas_core.dicom.label_objects import LabelObject, Segment, references_in, unreadable
from atlas_core.errors import AtlasError, CorruptFile, GridMismatch, UnsupportedVolume
from atlas_core.geometry import VolumeGeometry

PLACE_TOLERANCE: Final = 0.2
"""Pixels of a frame may lie this share of a voxel off their voxel: positions are written rounded,
and slices may lie a tenth of a gap off a regular grid. Half a voxel is a mistake."""

STEP_TOLERANCE: Final = 0.2
"""Over all its pixels, a frame's steps may differ from its CT's by this share of a voxel."""


@dataclass(frozen=True)
class _Frame:
    """Where one frame lies (LPS, mm), and what it is of; 0: of all segments (a label map)."""

    segment: int
    origin: NDArray[np.float64]
    down: NDArray[np.float64]
    along: NDArray[np.float64]


class SegmentationObject(LabelObject):
    """A DICOM Segmentation in memory, as it was packed.

    Raises:
        UnsupportedVolume: fractional, or an attribute is missing.
        CorruptFile: the header contradicts itself.
    """

    def __init__(self, dataset: Dataset) -> None:
        try:
            self._dataset = dataset
            self.references = references_in(dataset)
            kind = str(dataset.SegmentationType)
            if kind not in ("BINARY", "LABELMAP"):
                raise UnsupportedVolume(
                    "segmentation is fractional: where its segments end is open",
                    expected="BINARY or LABELMAP",
                    got=kind[:16],
                    remedy="export it as a binary segmentation",
                )
            self._map = kind == "LABELMAP"
            self.segments = tuple(_segments(dataset, background=0 if self._map else None))
            self._frames = tuple(_frames(dataset, of_all=self._map))
        except AtlasError:
            raise
        except Exception as error:  # attributes are converted, and found malformed, here
            raise unreadable(error) from None
        if len(self._frames) != int(dataset.NumberOfFrames):
            raise CorruptFile(
                "frames and their descriptions are not as many",
                expected=int(dataset.NumberOfFrames),
                got=len(self._frames),
                remedy="export the object again",
            )

    def mask(self, segment: Segment, grid: VolumeGeometry) -> NDArray[np.bool_]:
        """As `LabelObject.mask`."""
        chosen = [n for n, one in enumerate(self._frames) if one.segment in (0, segment.number)]
        places = [_place(self._frames[n], self._shape, grid) for n in chosen]
        mask = np.zeros(grid.shape, np.bool_)
        for frame, place in zip(self._pixels(chosen), places, strict=True):
            inside = frame == segment.number if self._map else frame != 0
            plane, rows, columns = place.plane(mask)
            plane[rows, columns] |= inside
        return mask

    @property
    def _shape(self) -> tuple[int, int]:
        return int(self._dataset.Rows), int(self._dataset.Columns)

    def _pixels(self, chosen: list[int]) -> Iterator[NDArray[Any]]:
        """Frames ``[row, column]``, unpacked."""
        if not chosen:
            return
        try:
            if int(self._dataset.BitsAllocated) == 1 and not self._encapsulated:
                yield from (self._bits(number) for number in chosen)
            else:
                yield from iter_pixels(self._dataset, indices=chosen, raw=True)
        except Exception as error:  # decoders raise what they like on damaged data
            raise unreadable(error) from None

    @property
    def _encapsulated(self) -> bool:
        syntax = self._dataset.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
        return bool(UID(syntax).is_encapsulated)

    def _bits(self, number: int) -> NDArray[np.uint8]:
        """A frame of one bit a pixel, which need not begin with a byte.

        pydicom 3.0.2 reads such frames wrongly.
        """
        rows, columns = self._shape
        start, count = number * rows * columns, rows * columns
        content = self._dataset.PixelData[start // 8 : -(-(start + count) // 8)]
        packed = np.frombuffer(content, np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[start % 8 :][:count]
        return bits.reshape(rows, columns)


@dataclass(frozen=True)
class _Place:
    """Where the pixels of a frame lie in a volume: its plane, and a range of it, turned."""

    axes: tuple[int, int, int]  # of rows, of columns, across
    index: int
    rows: slice
    columns: slice

    def plane(self, volume: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], slice, slice]:
        """A view ``[row, column]`` of `volume`, and the part of it that the frame covers."""
        return np.moveaxis(volume, self.axes, (0, 1, 2))[..., self.index], self.rows, self.columns


def _place(frame: _Frame, shape: tuple[int, int], grid: VolumeGeometry) -> _Place:
    """Raises:
    GridMismatch: the frame's pixels are no voxels of `grid`.
    """
    to_index = np.linalg.inv(grid.matrix) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    start = (to_index @ [*frame.origin, 1.0])[:3]
    down, along = to_index[:3, :3] @ frame.down, to_index[:3, :3] @ frame.along
    first = np.rint(start).astype(int)
    row_axis, column_axis = int(np.abs(down).argmax()), int(np.abs(along).argmax())
    fits = row_axis != column_axis and np.abs(start - first).max() <= PLACE_TOLERANCE
    for step, axis, count in ((down, row_axis, shape[0]), (along, column_axis, shape[1])):
        unit = np.zeros(3)
        unit[axis] = np.sign(step[axis])
        fits &= np.abs(step - unit).max() * count <= STEP_TOLERANCE
    across = 3 - row_axis - column_axis
    rows = _range(first[row_axis], down[row_axis], shape[0])
    columns = _range(first[column_axis], along[column_axis], shape[1])
    inside = all(
        low >= 0 and high <= size
        for (low, high), size in (
            (rows, grid.shape[row_axis]),
            (columns, grid.shape[column_axis]),
            ((first[across], first[across] + 1), grid.shape[across] if fits else 0),
        )
    )
    if not (fits and inside):
        spacing = " × ".join(f"{np.linalg.norm(step):.4g}" for step in (frame.along, frame.down))
        at = ", ".join(f"{v:.1f}" for v in frame.origin * [-1.0, -1.0, 1.0])
        raise GridMismatch(
            "a frame of the segmentation does not lie on voxels of its CT",
            expected=f"CT {grid}",
            got=f"a frame of {shape[1]}×{shape[0]}, {spacing} mm, at ({at}), {start.round(2)} in "
            "voxels",
            remedy="take the series that it was drawn on, or resample it to that and save it as "
            "NIfTI",
        )
    return _Place(
        (row_axis, column_axis, across),
        int(first[across]),
        _slice(rows, down[row_axis]),
        _slice(columns, along[column_axis]),
    )


def _range(first: int, step: float, count: int) -> tuple[int, int]:
    low = int(first) if step > 0 else int(first) - count + 1
    return low, low + count


def _slice(bounds: tuple[int, int], step: float) -> slice:
    low, high = bounds
    return slice(low, high) if step > 0 else slice(high - 1, low - 1 if low else None, -1)


def _segments(dataset: Dataset, background: int | None) -> Iterator[Segment]:
    for item in dataset.SegmentSequence:
        number = int(item.SegmentNumber)
        concept = next(iter(item.get("SegmentedPropertyTypeCodeSequence") or ()), None)
        meaning = concept.get("CodeMeaning") if concept is not None else None
        name = str(item.get("SegmentLabel") or meaning or f"segment {number}")
        if number != background:
            yield Segment(number, name, concept)


def _frames(dataset: Dataset, *, of_all: bool) -> Iterator[_Frame]:
    shared = dataset.SharedFunctionalGroupsSequence[0]

    def group(own: Dataset, keyword: str) -> Dataset:
        return (own.get(keyword) or shared[keyword].value)[0]

    for own in dataset.PerFrameFunctionalGroupsSequence:
        orientation = group(own, "PlaneOrientationSequence").ImageOrientationPatient
        cosines = np.array(orientation, np.float64).reshape(2, 3)
        spacing = np.array(group(own, "PixelMeasuresSequence").PixelSpacing, np.float64)
        origin = np.array(group(own, "PlanePositionSequence").ImagePositionPatient, np.float64)
        if not (np.isfinite(cosines).all() and np.isfinite(spacing).all()):
            raise CorruptFile("geometry of a frame is not finite", remedy="export the object again")
        segment = 0
        if not of_all:
            identified = group(own, "SegmentIdentificationSequence")
            segment = int(identified.ReferencedSegmentNumber)
        yield _Frame(segment, origin, cosines[1] * spacing[0], cosines[0] * spacing[1])
