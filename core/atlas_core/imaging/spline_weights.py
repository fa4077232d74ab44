"""How nnU-Net brings a CT to the grid of its network: cubic splines, as weights per axis.

nnU-Net (`default_resampling.py`, v2) interpolates by cubic splines along all axes; where the
spacing of either grid is anisotropic (more than 3 to 1), in the plane only, and takes the nearest
slice along the axis of the thick slices. Beyond the edge the outermost voxel goes on.

A spline's coefficients depend on all voxels of an axis, with a weight that falls by 0.268 a voxel.
Here the filter that gives them ends `REACH` voxels away and is multiplied into the four weights of
the spline itself, so that a new voxel is a weighted sum of at most 28 old ones, and slabs need only
their own source slices. What is cut off is below 2·10⁻⁷ of the range of values: 0.0005 HU of a CT.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from atlas_core.geometry import Float3
from atlas_core.imaging.resampling import AxisWeights

ANISOTROPIC = 3.0
"""nnU-Net's: a grid whose largest spacing is more than so many times its smallest has slices."""

POLE = np.sqrt(3.0) - 2.0
"""Of the filter from voxels to coefficients of a cubic spline."""

REACH = 12
"""Voxels on either side that a coefficient is made of; |POLE|^13 = 4·10⁻⁸."""


def nnunet_weights(
    old_mm: Float3, new_mm: Float3, old: tuple[int, int, int], new: tuple[int, int, int]
) -> tuple[AxisWeights, AxisWeights, AxisWeights]:
    """Weights along three axes.

    Args:
        old_mm, new_mm: spacing of the two grids along the axes.
        old, new: their voxels.
    """
    thick = thick_axis(old_mm, new_mm)
    a, b, c = (
        nearest_weights(before, after) if axis == thick else spline_weights(before, after)
        for axis, (before, after) in enumerate(zip(old, new, strict=True))
    )
    return a, b, c


def thick_axis(old_mm: Float3, new_mm: Float3) -> int | None:
    """Along which axis slices are thick, by the old grid, else by the new; None: along none, or
    along two."""
    for spacing in (old_mm, new_mm):
        if max(spacing) > ANISOTROPIC * min(spacing):
            thick = [axis for axis, mm in enumerate(spacing) if mm == max(spacing)]
            return thick[0] if len(thick) == 1 else None
    return None


@lru_cache(maxsize=64)
def spline_weights(old: int, new: int) -> AxisWeights:
    """Cubic splines from `old` to `new` voxels that fill the same length.

    >>> spline_weights(3, 3).weights[1].round(6).tolist()[12:15]
    [0.0, 1.0, 0.0]
    """
    position = (np.arange(new) + 0.5) * (old / new) - 0.5
    base = np.floor(position).astype(np.int64)
    t = (position - base)[:, None]
    # The cubic B-spline at distances 1 + t, t, 1 − t and 2 − t.
    spline = np.hstack([(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 0 * t, t**3]) / 6
    spline[:, 2] = 1 - spline.sum(axis=1)
    # A coefficient is the sum of √3 · POLE^|k| · (voxel k away).
    fir = np.sqrt(3.0) * POLE ** np.abs(np.arange(-REACH, REACH + 1))
    fir /= fir.sum()
    taps = 2 * REACH + 4
    dense = np.zeros((new, taps))
    for tap in range(4):
        dense[:, tap : tap + len(fir)] += spline[:, tap : tap + 1] * fir
    at = base[:, None] - 1 - REACH + np.arange(taps)
    return _within(old, np.clip(at, 0, old - 1), dense)


@lru_cache(maxsize=64)
def nearest_weights(old: int, new: int) -> AxisWeights:
    """The nearest of `old` voxels for each of `new`; half way, the upper one."""
    position = (2 * np.arange(new, dtype=np.int64) + 1) * old  # twice `new` times, from the edge
    at = np.clip(position // (2 * new), 0, old - 1)[:, None]
    return _within(old, at, np.ones((new, 1)))


def _within(old: int, at: NDArray[np.int64], dense: NDArray[np.float64]) -> AxisWeights:
    """Weights ``[new, tap]`` of the old indices `at`, rising, of which some may be the same."""
    start = at[:, 0]
    count = at[:, -1] - start + 1
    weights = np.zeros((len(at), int(count.max())))
    np.add.at(weights, (np.arange(len(at))[:, None], at - start[:, None]), dense)
    arrays = (start.astype(np.int32), count.astype(np.int32), weights.astype(np.float32))
    for array in arrays:
        array.setflags(write=False)
    return AxisWeights(old, *arrays, votes=np.zeros((0, 0), np.int64))
