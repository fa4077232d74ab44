"""Reading `released`: the attention map of the authors' published `create_attention.py`.

For organ c, with std and entropy as in Eq. 1 and 2 (natural logarithm, mean over the models):

    inconsistency   std where open(std > 0.1), else 0
    uncertainty     mean entropy where open(mean entropy > 0.05), else 0
    overlap         1 where the mean prediction of c and that of another organ are both above 0.5
    attention       the sum of the three; a voxel is *attended* where it is above 0

open(m) is a binary erosion by the full 3×3×3 element done twice, then a dilation by it done twice;
outside the volume everything counts as unset, as in `scipy.ndimage.binary_erosion`. An opening only
removes voxels, so those that remain are above the threshold, and an attended voxel never rounds to
the byte 0: the smallest terms that are kept are 0.05 · 136 = 6.8 and 0.1 · 136 = 13.6.

Attention size in this reading is the number of attended voxels, summed over organs.

Differences from the published script: the script stores p truncated to bytes and sets it to zero
outside each model's own mask, stores entropies as bytes, considers only some organs for overlap
(not the vessels), and divides each organ's map by its largest value. Here p is rounded, nothing is
set to zero, overlap considers all organs, and maps keep their scale, so that cases can be
compared.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from atlas_attention.fusion.agreement import Counts, no_counts
from atlas_attention.fusion.fused import (
    Fused,
    SoftPredictions,
    fuse_block,
    mark_terms,
    require_same_width,
    require_soft,
)
from atlas_attention.fusion.threads import Threads, parallel_for

MIN_INCONSISTENCY = 0.1
MIN_UNCERTAINTY = 0.05
"""Thresholds of the published script: values above them are kept."""

REACH = 2
"""Reach in voxels of two erosions (or dilations) by 3×3×3: one of 5×5×5 does both at once."""

HALO = 2 * REACH
"""Slices on either side that a slice depends on: by erosion, then by dilation."""


class ReleasedFuser:
    """Reading `released` over slabs of rising z; lags `HALO` slices behind.

    Holds the soft predictions of the last `HALO` slices and of the current slab, no more.
    """

    def __init__(self, *, threads: Threads = None) -> None:
        self._threads = threads
        self._soft: SoftPredictions | None = None  # slices that have not been returned yet
        self._gates: NDArray[np.uint8] | None = None  # from HALO slices before, not opened yet
        self._before = 0  # of those gates, slices that have been returned already
        self.counts = no_counts(1, 0)

    def push(self, soft: SoftPredictions) -> Fused:
        """See `fusion.Fuser.push`."""
        require_same_width(self._soft, soft)
        gates = mark_candidates(require_soft(soft), self._threads)
        if self._soft is None or self._gates is None:
            self._soft, self._gates = soft, gates
            self.counts = no_counts(*soft.shape[:2])
        else:
            self._soft = np.concatenate([self._soft, soft], axis=2)
            self._gates = np.concatenate([self._gates, gates], axis=1)
        return self._fuse_next(max(0, self._soft.shape[2] - HALO))

    def finish(self) -> Fused:
        """See `fusion.Fuser.finish`."""
        return Fused.empty(0, 0, 0) if self._soft is None else self._fuse_next(self._soft.shape[2])

    def _fuse_next(self, count: int) -> Fused:
        """The next `count` slices, which are then dropped."""
        assert self._soft is not None and self._gates is not None
        if count == 0:
            return Fused.empty(self._soft.shape[1], *self._soft.shape[3:])
        opened = self._gates.copy()
        open_gates(opened, self._threads)
        done = self._before + count
        fused = fuse_block(
            self._soft[:, :, :count],
            np.ascontiguousarray(opened[:, self._before : done]),
            counts=self.counts,
            threads=self._threads,
        )
        keep = max(0, done - HALO)
        self._gates = self._gates[:, keep:].copy()
        self._before = done - keep
        self._soft = self._soft[:, :, count:].copy()
        return fused


def fuse_released(
    soft: SoftPredictions,
    *,
    out: Fused | None = None,
    counts: Counts | None = None,
    threads: Threads = None,
) -> Fused:
    """Attention, mean and pseudo label of a whole volume; needs little memory beyond its result.

    Args:
        soft: uint8 ``[model, organ, z, y, x]``, p = v / 255.
        out: memory for the result, with any content; None: new memory.
        counts: see `fused.fuse_block`.
        threads: see `threads.Threads`.

    Raises:
        InvalidInput, LimitExceeded: see `fused.require_soft` and `require_out`.
    """
    soft = require_soft(soft)
    gates = mark_terms(soft, MIN_INCONSISTENCY, MIN_UNCERTAINTY, out=out, threads=threads)
    open_gates(gates, threads)
    return fuse_block(soft, gates, out=out, counts=counts, threads=threads)


def mark_candidates(soft: SoftPredictions, threads: Threads = None) -> NDArray[np.uint8]:
    """Gates before the opening, uint8 ``[organ, z, y, x]``: which terms exceed their threshold.

    No combination of three bytes is so close to a threshold that rounding matters (all are tested).
    """
    return mark_terms(soft, MIN_INCONSISTENCY, MIN_UNCERTAINTY, threads=threads)


def open_gates(gates: NDArray[np.uint8], threads: Threads) -> None:
    """Opens each bit of each organ of `gates` ``[organ, z, y, x]`` by 5×5×5, in place."""

    def kernel(first: int, last: int) -> None:
        for organ in range(first, last):
            box = _bounding_box(gates[organ])
            if box[0, 0] < box[0, 1]:
                _open_box(gates[organ], box)

    parallel_for(kernel, gates.shape[0], threads)


@njit(cache=True, nogil=True)
def _bounding_box(mask):  # type: ignore[no-untyped-def]
    """First and past-the-last index of set voxels per axis, ``[3, 2]``; zeros if none is set."""
    box = np.zeros((3, 2), np.int64)
    box[:, 0] = mask.shape
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            row = mask[z, y]
            seen = np.uint8(0)
            for x in range(row.size):
                seen |= row[x]
            if seen:
                left = 0
                while row[left] == 0:
                    left += 1
                right = row.size
                while row[right - 1] == 0:
                    right -= 1
                box[0, 0] = min(box[0, 0], z)
                box[0, 1] = z + 1
                box[1, 0] = min(box[1, 0], y)
                box[1, 1] = max(box[1, 1], y + 1)
                box[2, 0] = min(box[2, 0], left)
                box[2, 1] = max(box[2, 1], right)
    if box[0, 1] == 0:
        box[:] = 0
    return box


@njit(cache=True, nogil=True)
def _open_box(mask, box):  # type: ignore[no-untyped-def]
    """Opens `mask` ``[z, y, x]`` in place; all set voxels lie in `box`, and so does the opening."""
    inside = mask[box[0, 0] : box[0, 1], box[1, 0] : box[1, 1], box[2, 0] : box[2, 1]]
    a = inside.copy()
    b = np.zeros_like(a)
    _filter_rows(a, b, 0, True)
    _filter_rows(b, a, 1, True)
    _filter_columns(a, b, True)
    _filter_rows(b, a, 0, False)
    _filter_rows(a, b, 1, False)
    _filter_columns(b, a, False)
    inside[:] = a


@njit(cache=True, nogil=True)
def _filter_rows(source, target, axis, erode):  # type: ignore[no-untyped-def]
    """Bitwise AND (erode) or OR over the `REACH` neighbours on either side along z or y."""
    depth, height, width = source.shape
    most = depth if axis == 0 else height
    for z in range(depth):
        for y in range(height):
            at = z if axis == 0 else y
            out = target[z, y]
            if erode and (at < REACH or at + REACH >= most):
                out[:] = 0
                continue
            first = max(0, at - REACH)
            last = min(most - 1, at + REACH)
            out[:] = source[first, y] if axis == 0 else source[z, first]
            for k in range(first + 1, last + 1):
                row = source[k, y] if axis == 0 else source[z, k]
                if erode:
                    for x in range(width):
                        out[x] &= row[x]
                else:
                    for x in range(width):
                        out[x] |= row[x]


@njit(cache=True, nogil=True)
def _filter_columns(source, target, erode):  # type: ignore[no-untyped-def]
    """The same along x."""
    depth, height, width = source.shape
    for z in range(depth):
        for y in range(height):
            row = source[z, y]
            out = target[z, y]
            out[:] = 0
            if erode:
                for x in range(REACH, width - REACH):
                    out[x] = row[x - 2] & row[x - 1] & row[x] & row[x + 1] & row[x + 2]
                continue
            for x in range(width):
                for k in range(max(0, x - REACH), min(width, x + REACH + 1)):
                    out[x] |= row[k]
