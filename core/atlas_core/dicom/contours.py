"""DICOM RTSTRUCT → masks: closed planar contours, filled by the even-odd rule at voxel centres.

Contours of one structure in one plane count together: one inside another is a hole, and so is what
a keyhole leaves out. A voxel belongs to a structure if its centre does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from atlas_core.dicom.label_objects import LabelObject, Segment, references_in, unreadable
from atlas_core.errors import CorruptFile, GridMismatch
from atlas_core.geometry import VolumeGeometry

PLANE_TOLERANCE: Final = 0.2
"""Points of a contour lie within this share of a voxel of one plane of voxels."""

CLOSED: Final = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Contours that enclose something; points and open lines do not."""


class StructureSetObject(LabelObject):
    """A DICOM Structure Set in memory. Segments are structures with a closed contour.

    Raises:
        CorruptFile: an attribute is missing or malformed.
    """

    def __init__(self, dataset: Dataset) -> None:
        try:
            self.references = references_in(dataset)
            self._contours = {
                int(item.ReferencedROINumber): list(item.get("ContourSequence") or ())
                for item in dataset.get("ROIContourSequence") or ()
            }
            self.segments = tuple(
                Segment(int(roi.ROINumber), str(roi.get("ROIName") or f"ROI {roi.ROINumber}"), None)
                for roi in dataset.get("StructureSetROISequence") or ()
                if any(map(_is_closed, self._contours.get(int(roi.ROINumber), ())))
            )
        except Exception as error:  # attributes are converted, and found malformed, here
            raise unreadable(error) from None

    def mask(self, segment: Segment, grid: VolumeGeometry) -> NDArray[np.bool_]:
        """As `LabelObject.mask`; what lies outside the image in a plane is cut off."""
        planes: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
        to_index = np.linalg.inv(grid.matrix) @ np.diag([-1.0, -1.0, 1.0, 1.0])
        for points in self._polygons(segment):
            at = points @ to_index[:3, :3].T + to_index[:3, 3]
            across, index = _plane(at, grid)
            planes.setdefault((across, index), []).append(np.delete(at, across, axis=1))
        mask = np.zeros(grid.shape, np.bool_)
        for (across, index), polygons in planes.items():
            plane = np.moveaxis(mask, across, 0)[index]
            plane |= filled(polygons, plane.shape)
        return mask

    def _polygons(self, segment: Segment) -> Iterator[NDArray[np.float64]]:
        """Points ``[point, 3]`` (LPS, mm) of each closed contour."""
        for item in filter(_is_closed, self._contours[segment.number]):
            try:
                points = np.array(item.ContourData, np.float64).reshape(-1, 3)
            except Exception as error:  # as above
                raise unreadable(error) from None
            if not np.isfinite(points).all():
                raise CorruptFile(
                    "points of a contour are not finite", remedy="export the object again"
                )
            if len(points) > 2:
                yield points


def _is_closed(contour: Dataset) -> bool:
    return str(contour.get("ContourGeometricType") or "") in CLOSED


def _plane(at: NDArray[np.float64], grid: VolumeGeometry) -> tuple[int, int]:
    """The axis across a contour and the plane of voxels that it lies in.

    Raises:
        GridMismatch: it lies between planes, aslant, or outside.
    """
    across = int(np.ptp(at, axis=0).argmin())
    index = round(float(at[:, across].mean()))
    if np.abs(at[:, across] - index).max() > PLANE_TOLERANCE or not 0 <= index < grid.shape[across]:
        low, high = at[:, across].min(), at[:, across].max()
        raise GridMismatch(
            "a contour does not lie in a slice of its CT",
            expected=f"CT {grid}",
            got=f"points between {low:.2f} and {high:.2f} in slices",
            remedy="take the series that it was drawn on",
        )
    return across, index


def filled(polygons: Iterable[NDArray[np.float64]], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Which integer points ``(row, column)`` lie inside `polygons` together, by even and odd.

    A point on a left or upper edge is inside, on a right or lower one outside: of two polygons with
    a common edge, each point belongs to one.

    Args:
        polygons: corners ``[corner, (row, column)]``, each closed by itself.

    >>> square = np.array([[0.5, 0.5], [0.5, 3.5], [3.5, 3.5], [3.5, 0.5]])
    >>> hole = np.array([[1.5, 1.5], [1.5, 2.5], [2.5, 2.5], [2.5, 1.5]])
    >>> filled([square, hole], (5, 5)).astype(int)
    array([[0, 0, 0, 0, 0],
           [0, 1, 1, 1, 0],
           [0, 1, 0, 1, 0],
           [0, 1, 1, 1, 0],
           [0, 0, 0, 0, 0]])
    """
    rows, columns = shape
    crossings = np.zeros(rows * (columns + 1), np.int64)
    for corners in polygons:
        step = np.roll(corners, -1, axis=0) - corners
        ends = np.ceil(np.stack([corners[:, 0], corners[:, 0] + step[:, 0]]))
        first, last = (edge.clip(0, rows).astype(np.int64) for edge in (ends.min(0), ends.max(0)))
        count = last - first  # rows that each edge crosses
        edge = np.repeat(np.arange(len(corners)), count)
        row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
        share = (row - corners[edge, 0]) / step[edge, 0]
        column = np.ceil(corners[edge, 1] + share * step[edge, 1]).clip(0, columns)
        place = row * (columns + 1) + column.astype(np.int64)
        crossings += np.bincount(place, minlength=crossings.size)
    passed = np.cumsum(crossings.reshape(rows, columns + 1)[:, :columns], axis=1)
    return np.asarray(passed % 2 == 1)
