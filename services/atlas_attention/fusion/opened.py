"""Reading `opened`: Eq. 4 after a grey-scale opening with 3×3×3 voxels of the fusion grid.

Wherever an organ ends, its members differ a little, and each is unsure: attention has a rim about
every organ, two voxels thick, right or wrong. What an annotator can mend is thicker. The opening
(the largest of the smallest values of every cube of 3×3×3 voxels about a voxel) takes away what is
thinner, and leaves the rest as it was: never more than Eq. 4. Beyond the volume nothing is known,
so cubes end at its sides. Everything but the maps (mean, pseudo label, counts) is that of reading
`paper`; docs/decisions/0102 says what it was compared with.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlas_attention.fusion.fused import Fused
from atlas_attention.fusion.threads import Threads, parallel_for

SIDE = 3
"""Of the cube, in voxels: what is thinner is a rim. Thick errors survive the same opening of wrong
voxels, `atlas_flows.evaluation.thick_errors`."""

HALO = SIDE - 1
"""Slices on either side that a slice depends on: by erosion, then by dilation."""


class Opening:
    """Opens attention that arrives in slabs of rising z; lags `HALO` slices behind.

    Holds the results of the last `HALO` slices, and the attention of as many before them.
    """

    def __init__(self, threads: Threads = None) -> None:
        self._threads = threads
        self._held: Fused | None = None  # slices that have not been returned yet
        self._before: NDArray[np.uint8] | None = None  # attention of the slices before them

    def push(self, fused: Fused) -> Fused:
        """Adds slices of reading `paper`; returns those that are final now."""
        held = fused if self._held is None else Fused.concatenated([self._held, fused])
        self._held = held
        return self._up_to(max(0, held.slices - HALO))

    def finish(self) -> Fused:
        """The slices that remain."""
        return Fused.empty(0, 0, 0) if self._held is None else self._up_to(self._held.slices)

    def _up_to(self, count: int) -> Fused:
        """The next `count` slices, which are then dropped."""
        held = self._held
        assert held is not None
        if count == 0:
            return _slices(held, 0, 0)
        before = held.attention[:, :0] if self._before is None else self._before
        attention = np.concatenate([before, held.attention], axis=1)
        first, stop = before.shape[1], before.shape[1] + count
        self._before = attention[:, max(0, stop - HALO) : stop].copy()
        open_attention(attention, self._threads)
        done = replace(_slices(held, 0, count), attention=attention[:, first:stop].copy())
        self._held = _slices(held, count, held.slices)
        return done


def open_attention(attention: NDArray[np.uint8], threads: Threads = None) -> None:
    """Opens each organ's bytes ``[organ, z, y, x]``, in place.

    Args:
        threads: see `threads.Threads`.
    """

    def kernel(first: int, last: int) -> None:
        for organ in range(first, last):
            if box := _box(attention[organ]):
                # "nearest" lets the cubes end at the sides: the box has a voxel more on every side
                # that is not the volume's, and there attention is zero.
                inside = attention[organ][box]
                inside[:] = ndimage.grey_opening(inside, size=SIDE, mode="nearest")

    parallel_for(kernel, len(attention), threads)


def _box(attention: NDArray[np.uint8]) -> tuple[slice, ...] | None:
    """Where there is any, ``[z, y, x]``, and a voxel around it."""
    found = []
    for axis in range(attention.ndim):
        others = tuple(other for other in range(attention.ndim) if other != axis)
        (at,) = np.nonzero(attention.any(axis=others))
        if not at.size:
            return None
        found.append(slice(max(0, int(at[0]) - 1), int(at[-1]) + 2))
    return tuple(found)


def _slices(fused: Fused, first: int, stop: int) -> Fused:
    """A part of it along z, in memory of its own."""
    return Fused(
        fused.attention[:, first:stop].copy(),
        fused.mean[:, first:stop].copy(),
        fused.label[first:stop].copy(),
    )
