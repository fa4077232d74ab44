"""Masks of organs from label values, and the split of one kidney label into left and right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlas_core.errors import GridMismatch, LimitExceeded, UnknownLabel
from atlas_core.geometry import VolumeGeometry
from atlas_core.organs import BACKGROUND

VoxelBox = tuple[slice, slice, slice]
"""Of i, j and k."""

SIDE_DISTANCE_MM = 40.0
"""Components whose centres lie further apart than this from left to right belong to different
kidneys. The centres of two kidneys lie 90-150 mm apart, also in children more than 50; pieces of
one kidney lie within its own width of 60 mm, so their centres within 30."""

FUSED_WIDTH_MM = 110.0
"""A single component wider than this from left to right may be two kidneys in one piece (horseshoe
kidney, or masks that touch). One kidney is up to 70 mm wide; one with a large tumour can be wider,
so `WAIST` decides."""

WAIST = 0.5
"""Two kidneys in one piece have a waist: a sagittal plane between them where the area is at most
this share of the largest area on either side."""

MAX_COMPONENTS = 1 << 16
"""Connected pieces of two kidneys, at most: noise has millions."""

COUNTED_VOXELS = 1 << 22
"""Voxels whose components are counted at a time, so that the sums need little memory."""

TOUCHING = np.ones((3, 3, 3), dtype=np.uint8)
"""Voxels that share a face, edge or corner belong to one component."""


def require_known_labels(values: Iterable[int], organs: Mapping[int, object]) -> None:
    """Refuse label values that a dataset's map does not name.

    Raises:
        UnknownLabel: naming the first of them.
    """
    unknown = sorted({int(value) for value in values} - set(organs) - {BACKGROUND})
    if unknown:
        shown = ", ".join(str(value) for value in unknown[:8])
        raise UnknownLabel(
            f"{len(unknown)} label values are not in the map",
            expected=", ".join(str(value) for value in sorted(organs)) or "background only",
            got=shown + (" …" if len(unknown) > 8 else ""),
            remedy="add them to the dataset's preset, or correct the label",
        )


def organ_mask(voxels: NDArray[Any], values: Iterable[int]) -> NDArray[np.bool_]:
    """Voxels that hold one of `values`; same shape and memory order."""
    mask: NDArray[np.bool_] = np.zeros_like(voxels, dtype=np.bool_)
    for value in values:
        mask |= voxels == value
    return mask


@dataclass(frozen=True)
class _Component:
    """One connected piece of a mask.

    Attributes:
        number: its value in the component map.
        voxels: how many.
        x_mm: left-right position of its centre (RAS+: smaller is the patient's left).
    """

    number: int
    voxels: int
    x_mm: float


def split_left_right(
    mask: NDArray[Any], geometry: VolumeGeometry, *, midline_mm: float | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Split one mask of both kidneys into the patient's left and right.

    Connected components are grouped by the patient's left-right axis: the largest is one kidney;
    what lies further than `SIDE_DISTANCE_MM` from it, towards the heavier side, is the other;
    smaller pieces go to the nearer of the two. If there is no other kidney, a component with a
    waist (horseshoe kidney, touching masks) is cut at it; otherwise the only kidney is left or
    right by the midline.

    Args:
        mask: ``[i, j, k]``, non-zero where a kidney (with its tumour or cyst) is.
        geometry: its grid; any axis order, also oblique.
        midline_mm: x of the body's midline, used only where there is one kidney. None: the middle
            of the grid, which is right as long as the scan is centred on the patient.

    Returns:
        Masks of the left and the right kidney. Together they are `mask`; they do not overlap.

    Raises:
        GridMismatch: another shape than `geometry`.
        LimitExceeded: more than `MAX_COMPONENTS` connected pieces.
    """
    if mask.shape != geometry.shape:
        raise GridMismatch(
            "mask and geometry have different shapes", expected=geometry.shape, got=mask.shape
        )
    left, right = np.zeros_like(mask, dtype=np.bool_), np.zeros_like(mask, dtype=np.bool_)
    box = bounding_box(mask)
    if box is None:
        return left, right
    inside = np.asarray(mask[box] != 0)
    x_mm = _x_mm(geometry, box)
    on_left = _left_of(inside, x_mm, _middle(geometry) if midline_mm is None else midline_mm)
    left[box] = inside & on_left
    right[box] = inside & ~on_left
    return left, right


def boxes_of(labels: NDArray[Any], highest: int) -> list[VoxelBox | None]:
    """The smallest boxes that hold the values 1 to `highest` of a label map, in one pass; None for
    a value that is nowhere.

    >>> boxes_of(np.array([0, 2, 2]).reshape(3, 1, 1), 2)
    [None, (slice(1, 3, None), slice(0, 1, None), slice(0, 1, None))]
    """
    # Through memory as it lies: our maps have the first axis fastest.
    found = ndimage.find_objects(labels.T, max_label=highest)
    return [None if box is None else (box[2], box[1], box[0]) for box in found]


def bounding_box(mask: NDArray[Any]) -> VoxelBox | None:
    """The smallest box that holds every non-zero voxel, or None."""
    found = mask != 0
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        where = np.flatnonzero(found.any(axis=others))
        if not len(where):
            return None
        slices.append(slice(int(where[0]), int(where[-1]) + 1))
    return (slices[0], slices[1], slices[2])


def _x_mm(geometry: VolumeGeometry, box: VoxelBox) -> NDArray[np.float32]:
    """x coordinate (mm, RAS+) of every voxel of a box, ``[i, j, k]``."""
    row = geometry.matrix[0]
    i, j, k = ((np.arange(s.start, s.stop) * row[a]).astype(np.float32) for a, s in enumerate(box))
    return np.asarray((i + np.float32(row[3]))[:, None, None] + j[None, :, None] + k)


def _middle(geometry: VolumeGeometry) -> float:
    return float(geometry.corners_mm()[:, 0].mean())


def _left_of(
    inside: NDArray[np.bool_], x_mm: NDArray[np.float32], midline_mm: float
) -> NDArray[np.bool_]:
    """Which voxels belong to the left kidney; undefined outside `inside`."""
    numbers, count = ndimage.label(inside, structure=TOUCHING)
    if count > MAX_COMPONENTS:
        raise LimitExceeded(
            "kidneys consist of too many pieces",
            expected=f"at most {MAX_COMPONENTS}",
            got=count,
            remedy="label the left and the right kidney apart",
        )
    components = _components(numbers, count, x_mm)
    anchor = components[0]
    other_x = _other_side(anchor, components)
    if other_x is None:
        cut = _waist_mm(inside & (numbers == anchor.number), x_mm)
        if cut is not None:
            return np.asarray(x_mm < cut)
        return np.full(inside.shape, anchor.x_mm < midline_mm)
    halfway = (anchor.x_mm + other_x) / 2
    is_left = np.zeros(count + 1, np.bool_)
    for component in components:
        is_left[component.number] = component.x_mm < halfway
    return np.asarray(is_left[numbers])


def _components(
    numbers: NDArray[np.int32], count: int, x_mm: NDArray[np.float32]
) -> list[_Component]:
    """Components, largest first (of equal ones the leftmost first)."""
    flat, x_flat = numbers.ravel(), x_mm.ravel()
    voxels, x_sum = np.zeros(count + 1, np.int64), np.zeros(count + 1)
    for start in range(0, flat.size, COUNTED_VOXELS):
        part = slice(start, start + COUNTED_VOXELS)
        voxels += np.bincount(flat[part], minlength=count + 1)
        x_sum += np.bincount(flat[part], weights=x_flat[part], minlength=count + 1)
    found = [
        _Component(n, int(voxels[n]), float(x_sum[n] / voxels[n])) for n in range(1, count + 1)
    ]
    return sorted(found, key=lambda component: (-component.voxels, component.x_mm))


def _other_side(anchor: _Component, components: list[_Component]) -> float | None:
    """Left-right position of the other kidney, or None: mean over what lies far on its side."""
    far = [c for c in components if abs(c.x_mm - anchor.x_mm) > SIDE_DISTANCE_MM]
    sides = [
        [c for c in far if (c.x_mm > anchor.x_mm) == towards_right]
        for towards_right in (False, True)
    ]
    weights = [sum(c.voxels for c in side) for side in sides]
    if not any(weights):
        return None
    side = sides[int(weights[1] > weights[0])]
    return sum(c.x_mm * c.voxels for c in side) / max(weights)


def _waist_mm(component: NDArray[np.bool_], x_mm: NDArray[np.float32]) -> float | None:
    """x of the sagittal plane where one component narrows between two kidneys, or None."""
    inside = x_mm[component]
    low, high = float(inside.min()), float(inside.max())
    if high - low < FUSED_WIDTH_MM:
        return None
    # Bins of about 4 mm: finer ones alias with the voxels, coarser ones hide a thin isthmus.
    areas, edges = np.histogram(inside, bins=max(8, round((high - low) / 4)))
    quarter = len(areas) // 4
    waist = quarter + int(np.argmin(areas[quarter : len(areas) - quarter]))
    shoulders = min(areas[:waist].max(), areas[waist + 1 :].max())
    if areas[waist] > WAIST * shoulders:
        return None
    return float(edges[waist] + edges[waist + 1]) / 2
