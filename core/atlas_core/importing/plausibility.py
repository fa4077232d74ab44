"""Whether voxel values are those of a CT, for formats that do not record the modality."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from atlas_core.imaging import Volume, distinct_values

AIR_HU: Final = -200
"""Below this there is only air, lung and padding; fat begins at about −150."""

MIN_AIR: Final = 0.001
"""Share of a CT's voxels below `AIR_HU`, at least: a CT shows the air around and inside the body.
Real CTs of chest and abdomen have 37-76 %. An MR has none, as its values begin at 0 or a little
below; nor has a CT that lost its offset of −1024 in a conversion."""

MAX_LABEL_VALUES: Final = 128
"""Whole numbers from 0 to 255, at most so many distinct ones: a label map (TotalSegmentator has
118). An image of so few grey values is not a CT either."""


def hounsfield_doubt(voxels: NDArray[Any]) -> str | None:
    """Why `voxels` ``[i, j, k]`` are not plausible Hounsfield units; None if they are."""
    air = int(np.count_nonzero(voxels < AIR_HU))
    if air == voxels.size:
        return f"every voxel lies below {AIR_HU}"
    if air < MIN_AIR * voxels.size:
        lowest = f"the lowest value is {float(voxels.min()):g}"
        return f"a CT has air, but {100 * air / voxels.size:.2g} % lie below {AIR_HU}, {lowest}"
    return None


def looks_like_labels(voxels: NDArray[Any]) -> bool:
    """Whether `voxels` ``[i, j, k]`` are label values: few distinct whole numbers from 0 to 255."""
    if float(voxels.min()) < 0 or float(voxels.max()) > 255:
        return False
    if voxels.dtype.kind == "f" and not all(
        np.array_equal(plane, np.rint(plane)) for plane in np.moveaxis(voxels, 2, 0)
    ):
        return False
    return len(distinct_values(voxels)) <= MAX_LABEL_VALUES


def narrowed(voxels: NDArray[Any]) -> NDArray[Any]:
    """`voxels` as int16 if that loses nothing (half the bytes to store and to read), else as is."""
    bounds = np.iinfo(np.int16)
    if voxels.dtype == np.int16 or voxels.min() < bounds.min or voxels.max() > bounds.max:
        return voxels
    narrow = voxels.astype(np.int16)
    if voxels.dtype.kind == "f" and not np.array_equal(narrow, voxels):
        return voxels
    return narrow


def midline_mm(ct: Volume) -> float:
    """Left-right centre of the body (mm, RAS+): mean x of what is denser than air.

    Every fourth voxel along each axis is looked at: a few thousand are plenty for a mean.
    """
    body = np.argwhere(ct.voxels[::4, ::4, ::4] > AIR_HU)
    if not len(body):
        return float(ct.geometry.corners_mm()[:, 0].mean())
    return float((4 * body.mean(axis=0)) @ ct.geometry.matrix[0, :3] + ct.geometry.matrix[0, 3])
