"""Blends overlapping windows into one soft prediction, slab by slab, in integers.

A voxel's blended byte is round(Σ_w weight_w · v_w / Σ_w weight_w) over the windows w that cover it.
The weights are the windows' normalised Gaussian shares, rounded down to 1/257: 257 · 255 = 65 535,
so the sums fit 16 bits, and because they are integers they do not depend on the order in which
predictions arrive. Quantising changes the weight of each window by less than 1/257, not the values
that are averaged: where the windows agree, the result is exactly their value.

Slices live in a ring buffer as deep as a window: once no further window can touch a slice, it is
read out and its memory is given back. Memory does not depend on the number of slices; and since
only pages that hold something exist, many organs, each of which fills a small part of the ring,
take what they fill.
"""

from __future__ import annotations

import math
import mmap

import numpy as np
from atlas_core.errors import InvalidInput
from numba import njit
from numpy.typing import NDArray

from atlas_attention.fusion.fused import SoftPredictions
from atlas_attention.fusion.threads import Threads, parallel_for
from atlas_attention.fusion.windows import Window, WindowPlan, Zyx

WEIGHT_LEVELS = 257
"""Steps of a weight of 1: the largest number for which Σ weight · 255 fits 16 bits."""


class Blender:
    """Accumulates the predictions of one volume: windows of one z-row at a time, rows rising.

    Args:
        plan: where the windows lie.
        models, organs: channels of the predictions.
        threads: see `threads.Threads`.
    """

    def __init__(
        self, plan: WindowPlan, models: int, organs: int, *, threads: Threads = None
    ) -> None:
        depth = min(plan.patch[0], plan.grid[0])
        self._plan = plan
        self._threads = threads
        self._sums = _PagedZeros((models, organs, depth, *plan.grid[1:]))
        self._touched = np.zeros((models, organs, depth, plan.grid[1]), np.bool_)
        self._weights = np.zeros((depth, *plan.grid[1:]), np.uint16)
        self._row = -1
        self._read = 0
        self._last: tuple[Window, NDArray[np.uint8]] | None = None

    def open_row(self, k: int) -> None:
        """Prepares for the windows of z-row `k`; all slices settled before must have been read."""
        assert k == self._row + 1, "rows rise one by one"
        assert self._read >= self._plan.settled(k - 1), "settled slices are read"
        self._row = k
        for window in self._plan.row(k):
            _add_weights(
                self._weights, _weights_of(self._plan, window), np.array(window.start),
                self._plan.grid[0],
            )  # fmt: skip

    def add(self, window: Window, model: int, soft: NDArray[np.uint8]) -> None:
        """Adds the prediction of one model for one window of the open row; air is not added.

        Args:
            soft: uint8 ``[organ, z, y, x]`` of the size of the patch.

        Raises:
            InvalidInput: another type or shape.
        """
        sums = self._sums.array[model]
        require_answer(soft, len(sums), self._plan.patch)
        assert window.at[0] == self._row, "windows of the open row only"
        if self._last is None or self._last[0] != window:
            self._last = (window, _weights_of(self._plan, window))
        weights = self._last[1]
        start = np.array(window.start)
        soft = np.ascontiguousarray(soft)

        def kernel(first: int, last: int) -> None:
            for organ in range(first, last):
                _add_window(
                    sums[organ], self._touched[model, organ], soft[organ], weights, start,
                    self._plan.grid[0],
                )  # fmt: skip

        parallel_for(kernel, len(soft), self._threads)

    def read(self, stop: int) -> SoftPredictions:
        """The blended slices from the last one read up to `stop`; their memory is reused.

        Returns:
            uint8 ``[model, organ, z, y, x]``.
        """
        start, self._read = self._read, stop
        require_settled(self._plan, self._row, start, stop)
        models, organs, depth, rows, columns = self._sums.array.shape
        soft = np.zeros((models, organs, stop - start, rows, columns), np.uint8)

        def kernel(first: int, last: int) -> None:
            for channel in range(first, last):
                m, c = divmod(channel, organs)
                if _read_slices(
                    self._sums.array[m, c], self._touched[m, c], self._weights, start, soft[m, c]
                ):
                    self._sums.release(channel, start % depth, stop - start)

        parallel_for(kernel, models * organs, self._threads)
        self._weights[np.arange(start, stop) % len(self._weights)] = 0
        return soft


class _PagedZeros:
    """Zeros, of which only the pages that were written to take memory.

    Attributes:
        array: uint16 ``[model, organ, depth, y, x]``.
    """

    def __init__(self, shape: tuple[int, int, int, int, int]) -> None:
        count = math.prod(shape)
        self._memory = mmap.mmap(-1, max(1, 2 * count), mmap.MAP_PRIVATE)
        # Huge pages would be filled by the organ's neighbours, slices further on.
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.array = np.frombuffer(self._memory, np.uint16, count).reshape(shape)

    def release(self, channel: int, start: int, slices: int) -> None:
        """Gives back the pages that lie within `slices` of a channel, from `start` on, around the
        ring; all of them hold zeros."""
        depth, rows, columns = self.array.shape[2:]
        for first, last in ((start, min(start + slices, depth)), (0, start + slices - depth)):
            page = mmap.PAGESIZE
            begin = -(-2 * (channel * depth + first) * rows * columns // page) * page
            end = 2 * (channel * depth + last) * rows * columns // page * page
            if begin < end:
                self._memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def require_settled(plan: WindowPlan, row: int, start: int, stop: int) -> None:
    """Checks that slices ``[start, stop)`` may be read once the windows of `row` have been added:
    later windows do not touch them. Slices above all windows are read separately, as they share the
    memory of the ring with those below."""
    settled = plan.settled(row)
    if row + 1 == plan.rows and start >= settled:
        settled = plan.settled(plan.rows)
    assert start <= stop <= settled, "only settled slices are certain"


def require_answer(soft: NDArray[np.uint8], organs: int, patch: Zyx) -> None:
    """Refuses an answer that has another form than one window's prediction.

    Raises:
        InvalidInput: names both forms.
    """
    expected = (organs, *patch)
    if soft.dtype != np.uint8 or soft.shape != expected:
        raise InvalidInput(
            "a model answered with another form than its specification says",
            expected=f"uint8 {list(expected)}",
            got=f"{soft.dtype} {list(soft.shape)}",
        )


def _weights_of(plan: WindowPlan, window: Window) -> NDArray[np.uint8]:
    """Weights of one window, uint8 ``[z, y, x]`` of the patch.

    257, the weight where only one window covers a voxel, is stored as 255: the value of such a
    voxel does not depend on its weight.
    """
    weights = np.empty(plan.patch, np.uint8)
    z, y, x = (share[at] for share, at in zip(plan.shares, window.at, strict=True))
    _outer(z, y, x, weights)
    return weights


@njit(cache=True, nogil=True)
def _outer(z, y, x, weights):  # type: ignore[no-untyped-def]
    for k in range(z.size):
        for j in range(y.size):
            row = weights[k, j]
            zy = z[k] * y[j] * WEIGHT_LEVELS
            for i in range(x.size):
                row[i] = np.uint8(min(np.int32(zy * x[i]), np.int32(255)))


@njit(cache=True, nogil=True)
def _clip(start, patch, voxels):  # type: ignore[no-untyped-def]
    """Part of a window inside the grid, as voxels of the window ``[first, last)``."""
    return max(0, -start), min(patch, voxels - start)


@njit(cache=True, nogil=True)
def _add_weights(sums, weights, start, slices):  # type: ignore[no-untyped-def]
    depth, rows, columns = sums.shape
    first_z, last_z = _clip(start[0], weights.shape[0], slices)
    first_y, last_y = _clip(start[1], weights.shape[1], rows)
    first_x, last_x = _clip(start[2], weights.shape[2], columns)
    for z in range(first_z, last_z):
        for y in range(first_y, last_y):
            row = sums[(start[0] + z) % depth, start[1] + y, start[2] + first_x : start[2] + last_x]
            weight = weights[z, y, first_x:last_x]
            for x in range(row.size):
                row[x] += np.uint16(weight[x])


@njit(cache=True, nogil=True)
def _add_window(sums, touched, soft, weights, start, slices):  # type: ignore[no-untyped-def]
    """Adds one organ of one window ``[z, y, x]`` to the ring `sums` ``[depth, y, x]``; rows of
    zeros are skipped."""
    depth, rows, columns = sums.shape
    first_z, last_z = _clip(start[0], soft.shape[0], slices)
    first_y, last_y = _clip(start[1], soft.shape[1], rows)
    first_x, last_x = _clip(start[2], soft.shape[2], columns)
    # Flat, with unsigned indices: the overhead per row matters when a row has only 64 voxels.
    ring = sums.reshape(-1)
    values = soft.reshape(-1)
    weight = weights.reshape(-1)
    width = np.uint64(max(0, last_x - first_x))
    for z in range(first_z, last_z):
        ring_slice = (start[0] + z) % depth
        for y in range(first_y, last_y):
            at = np.uint64((z * soft.shape[1] + y) * soft.shape[2] + first_x)
            seen = np.uint8(0)
            for x in range(width):
                seen |= values[at + x]
            if seen == 0:
                continue
            touched[ring_slice, start[1] + y] = True
            to = np.uint64((ring_slice * rows + start[1] + y) * columns + start[2] + first_x)
            for x in range(width):
                ring[to + x] += np.uint16(weight[at + x]) * np.uint16(values[at + x])


@njit(cache=True, nogil=True)
def _read_slices(sums, touched, weights, start, soft):  # type: ignore[no-untyped-def]
    """Normalises the slices from `start` on into `soft` ``[z, y, x]``, and clears their memory;
    whether there was anything but zeros."""
    depth = sums.shape[0]
    any_touched = False
    for z in range(soft.shape[0]):
        ring_slice = (start + z) % depth
        for y in range(soft.shape[1]):
            if not touched[ring_slice, y]:
                continue
            touched[ring_slice, y] = False
            any_touched = True
            row = sums[ring_slice, y]
            weight = weights[ring_slice, y]
            out = soft[z, y]
            for x in range(out.size):
                # Both operands are integers below 2^24, so float32 holds them exactly, and the
                # rounded quotient has the same integer part as the exact one.
                doubled = np.float32(2 * np.uint32(row[x]) + weight[x])
                # Outside all windows both are 0, and the quotient must be 0 too.
                weights_twice = np.float32(2 * max(np.uint32(weight[x]), np.uint32(1)))
                out[x] = np.uint8(np.int32(doubled / weights_twice))
                row[x] = 0
    return any_touched
