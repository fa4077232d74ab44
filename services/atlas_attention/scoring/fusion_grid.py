"""Blended predictions brought from a member's grid to the grid where the members are fused.

The same fixed point as on the way to the CT (`native_grid`): both grids have the same box edges,
positions are rounded to 1/256 of a voxel, and bytes are interpolated linearly along every axis.
Here the sum over the eight neighbours is rounded once, half up, so a byte is off by at most half a
step from the interpolation at the rounded position. Along the axis of thick slices, members that
are served as nnU-Net copy the nearest slice instead. All is integer: the result does not depend on
how the volume is cut, and a flipped volume gives the flipped result.

Where the fusion grid is coarser than the member's along an axis (because the CT is, or because it
was asked for), it samples: soft predictions are as smooth as the network, and need no antialiasing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from atlas_attention.fusion import (
    SoftPredictions,
    Threads,
    WindowBlender,
    WindowPlan,
    Zyx,
    parallel_for,
)
from atlas_attention.scoring.native_grid import AxisPositions


class FusionGridReader:
    """Reads what was blended on one grid on another, once from bottom to top.

    Holds the slices that later ones still need, and those that had to leave the ring of windows.

    Args:
        blender: of members of one grid.
        plan: where their windows lie.
        grid: voxels of the fusion grid (z, y, x).
        to_host: brings what the blender returns to host memory.
        threads: see `fusion.Threads`.
        copied: axis (z, y, x) along which the nearest voxel is taken; None: linear along all.
    """

    def __init__(
        self,
        blender: WindowBlender,
        plan: WindowPlan,
        grid: Zyx,
        to_host: Callable[[SoftPredictions], SoftPredictions],
        threads: Threads,
        copied: int | None = None,
    ) -> None:
        self._blender = blender
        self._plan = plan
        self._to_host = to_host
        self._threads = threads
        self._z, self._y, self._x = (
            AxisPositions.nearest(m, n) if axis == copied else AxisPositions.between(m, n)
            for axis, (m, n) in enumerate(zip(plan.grid, grid, strict=True))
        )
        self._held: SoftPredictions | None = None
        self._first = 0  # slice of the member's grid that is held first
        self._known = 0  # slices read out of the ring
        self._next = 0  # of the fusion grid

    def ready(self, settled: int) -> int:
        """Slices of the fusion grid that need only the first `settled` of the members'."""
        return int(np.searchsorted(self._z.upper, settled))

    def flush(self, settled: int) -> None:
        """Takes the slices below `settled` out of the ring, whose memory further windows need."""
        # Slices above all windows share the ring's memory with those below: one read takes either.
        for stop in (min(settled, self._plan.settled(self._plan.rows - 1)), settled):
            if self._known < stop:
                piece = self._to_host(self._blender.read(stop))
                self._known = stop
                held = self._held
                self._held = piece if held is None else np.concatenate([held, piece], axis=2)

    def read(self, stop: int, targets: Sequence[NDArray[np.uint8]]) -> None:
        """The slices from the last one read up to `stop` of the fusion grid.

        Args:
            targets: of each member and channel of the blender ``[z, y, x]``, zero before.
        """
        start, self._next = self._next, stop
        self.flush(int(self._z.upper[stop - 1]) + 1)
        held = self._held
        assert held is not None
        channels = held.reshape(len(targets), *held.shape[2:])
        z = (self._z.lower[start:stop] - self._first, self._z.weight[start:stop])
        y = (self._y.lower, self._y.weight)
        x = (self._x.lower.astype(np.uint32), self._x.weight, self._x.readers())

        def kernel(first: int, last: int) -> None:
            for channel in range(first, last):
                _interpolate(channels[channel], z, y, x, targets[channel])

        parallel_for(kernel, len(targets), self._threads)
        ended = stop == len(self._z.lower)
        needed = self._known if ended else min(int(self._z.lower[stop]), self._known)
        # A view keeps the memory of all, a copy takes as much again as is left.
        if 2 * (self._known - needed) <= held.shape[2]:
            self._held, self._first = held[:, :, needed - self._first :].copy(), needed


@njit(cache=True, nogil=True)
def _span(row):  # type: ignore[no-untyped-def]
    """The range of columns that hold anything but zero."""
    seen = np.uint8(0)
    for x in range(row.size):
        seen |= row[x]
    if seen == 0:
        return 0, 0
    left = 0
    while row[left] == 0:
        left += 1
    right = row.size
    while row[right - 1] == 0:
        right -= 1
    return left, right


@njit(cache=True, nogil=True)
def _interpolate(held, z_axis, y_axis, x_axis, out):  # type: ignore[no-untyped-def]
    """One channel `held` ``[z, y, x]`` at the positions of `out` ``[z, y, x]``, zero before."""
    slices, rows, columns = held.shape
    z_lower, z_weight = z_axis
    y_lower, y_weight = y_axis
    x_lower, x_weight, readers = x_axis
    spans = np.zeros((slices, rows, 2), np.int64)
    for k in range(slices):
        for j in range(rows):
            spans[k, j, 0], spans[k, j, 1] = _span(held[k, j])
    line = np.zeros(columns + 1, np.uint32)
    one = np.uint32(1)
    whole = np.uint32(256)
    half = np.uint32(1 << 23)
    for k in range(out.shape[0]):
        z0 = z_lower[k]
        wz = z_weight[k]
        z1 = z0 + 1 if wz > 0 else z0
        for j in range(out.shape[1]):
            y0 = y_lower[j]
            wy = y_weight[j]
            y1 = y0 + 1 if wy > 0 else y0
            left = columns
            right = 0
            for z in (z0, z1):
                for y in (y0, y1):
                    if spans[z, y, 1] > 0:
                        left = min(left, spans[z, y, 0])
                        right = max(right, spans[z, y, 1])
            if left >= right:
                continue
            wa = (whole - wz) * (whole - wy)
            wb = (whole - wz) * wy
            wc = wz * (whole - wy)
            wd = wz * wy
            a = held[z0, y0, left:right]
            b = held[z0, y1, left:right]
            c = held[z1, y0, left:right]
            d = held[z1, y1, left:right]
            blended = line[left:right]
            for x in range(a.size):
                # At most 255 · 2^16; along x times 2^8, which fits 32 bits with half a step.
                near = wa * np.uint32(a[x]) + wb * np.uint32(b[x])
                blended[x] = near + wc * np.uint32(c[x]) + wd * np.uint32(d[x])
            if left > 0:
                line[left - 1] = 0
            line[right] = 0
            begin = readers[0, left]
            end = readers[1, right]
            lower = x_lower[begin:end]
            weight = x_weight[begin:end]
            row = out[k, j, begin:end]
            for i in range(row.size):
                value = line[lower[i]] * np.uint32(whole - weight[i])
                value += line[lower[i] + one] * weight[i]
                row[i] = np.uint8(np.uint32(value + half) >> np.uint32(24))
