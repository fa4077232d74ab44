"""A CT resampled to the grid of the models, slab by slab, and windows cut out of it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.resampling import (
    AxisWeights,
    axis_weights,
    resample_across,
    resample_planes,
)
from atlas_core.model_spec import Padding
from numpy.typing import NDArray

from atlas_attention.fusion import AIR_HU, Window, WindowPlan, Zyx


class CtSource(Protocol):
    """A CT in Hounsfield units that is read slab by slab; `atlas_core.imaging.open_slabs` gives
    one."""

    @property
    def geometry(self) -> VolumeGeometry:
        """Grid in the file's own axis order."""

    @property
    def canonical(self) -> VolumeGeometry:
        """The same grid, its axes turned to RAS+."""

    def read(self, start: int, stop: int, /) -> NDArray[np.float32]:
        """Canonical slices ``[start, stop)`` along z: finite HU ``[z, y, x]``."""


class ModelGridReader:
    """Reads a CT on the models' grid, once from bottom to top.

    Holds the slices of the last block, and the CT slices that later ones still need, already
    resampled in plane.

    Args:
        grid: voxels of the models' grid (z, y, x).
        weights: how its axes read those of the CT (z, y, x); None: linear, with antialiasing.
        clip_hu: what the CT is clipped to before and after; None: it is not.
        slices_at_once: how many slices are resampled in one step; bounds memory.
    """

    def __init__(
        self,
        source: CtSource,
        grid: Zyx,
        slices_at_once: int,
        *,
        weights: tuple[AxisWeights, AxisWeights, AxisWeights] | None = None,
        clip_hu: tuple[float, float] | None = None,
    ) -> None:
        native = to_zyx(source.canonical.shape)
        self._source = source
        self._step = slices_at_once
        self._z, self._y, self._x = weights or (
            axis_weights(old, new) for old, new in zip(native, grid, strict=True)
        )
        self._clip_hu = clip_hu
        self._planes = np.empty((0, *grid[1:]), np.float32)
        self._first = 0
        self._block = np.empty((0, *grid[1:]), np.float32)
        self._start = 0

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Slices ``[start, stop)`` of the models' grid, HU ``[z, y, x]``.

        Neither bound may be lower than in the call before.
        """
        kept = self._block[start - self._start :]
        block = np.empty((stop - start, *kept.shape[1:]), np.float32)
        block[: len(kept)] = kept
        begin = start + len(kept)
        self._block, self._start = block, start
        del kept  # what came before is freed, before as much again is resampled
        for at in range(begin, stop, self._step):
            until = min(stop, at + self._step)
            block[at - start : until - start] = self._resampled(at, until)
        return block

    def _resampled(self, start: int, stop: int) -> NDArray[np.float32]:
        low, high = self._z.source_range(start, stop)
        kept = self._planes[max(0, low - self._first) :]
        first = max(low, self._first + len(self._planes))
        fresh = [
            resample_planes(self._clipped(at, min(high, at + self._step)), self._y, self._x)
            for at in range(first, high, self._step)
        ]
        self._planes, self._first = np.concatenate([kept, *fresh]), low
        across = resample_across(self._planes, self._z, start, stop, low)
        if self._clip_hu is None:
            return across
        lower, upper = self._clip_hu
        return np.clip(across + np.float32(lower), lower, upper, dtype=np.float32)

    def _clipped(self, start: int, stop: int) -> NDArray[np.float32]:
        """Slices of the CT; if they are clipped, above the lower limit, so that what is below it
        stays exactly there whatever the weights add up to."""
        voxels = self._source.read(start, stop)
        if self._clip_hu is None:
            return voxels
        lower, upper = self._clip_hu
        return np.clip(voxels, lower, upper, dtype=np.float32) - np.float32(lower)


def to_zyx(xyz: tuple[int, int, int]) -> Zyx:
    """Voxels along x, y, z in the order of arrays."""
    return xyz[2], xyz[1], xyz[0]


def extract_window(
    block: NDArray[np.float32], window: Window, plan: WindowPlan, padding_hu: Padding = AIR_HU
) -> NDArray[np.float32]:
    """The voxels of `window`, HU ``[z, y, x]`` of the patch; `padding_hu` beyond the grid.

    Args:
        block: the slices of the window's z-row, ``[z, y, x]``.
    """
    source = []
    target = []
    bottom = plan.z_range(window.at[0])[0]
    for start, patch, voxel_count, origin in zip(
        window.start, plan.patch, plan.grid, (bottom, 0, 0), strict=True
    ):
        first, last = max(0, start), min(voxel_count, start + patch)
        source.append(slice(first - origin, last - origin))
        target.append(slice(first - start, last - start))
    there = block[tuple(source)]
    if padding_hu == "edge":
        beyond = [
            (part.start, patch - part.stop) for part, patch in zip(target, plan.patch, strict=True)
        ]
        return np.ascontiguousarray(np.pad(there, beyond, mode="edge"), np.float32)
    voxels = np.full(plan.patch, padding_hu, np.float32)
    voxels[tuple(target)] = there
    return voxels
