"""From soft predictions to attention, mean and pseudo label: Eq. 1–4 of the AbdomenAtlas-8K paper.

For voxel i, organ c and models n = 1..N with soft predictions p = v / 255, reading `paper` is

    Inconsistency (Eq. 1)   sqrt(Σ_n (p_n − µ)² / N) = sqrt(N·Σv² − (Σv)²) / (255·N)
    Uncertainty   (Eq. 2)   −Σ_n p_n · ln p_n / N
    Overlap       (Eq. 3)   1 if some model has p > 0.5 for c, and some model for another organ
    Attention     (Eq. 4)   the sum of the three

Readings `released` and `opened` are described in the modules of these names. A whole volume goes
through `fuse`; a stream of slabs goes through an `open_fuser`, with the same result to the bit.

Rounding errors. The attention byte differs from 136 · Eq. 4, computed without rounding from the
same bytes v, by at most 0.5 + (N/2 + 1.01) / 256: half a step for its own rounding, the rest for
that of the tables (0.51 for three models). Rounding p to v before that moves each p by at most
δ = 1/510, hence Inconsistency by at most δ, and Uncertainty by at most −δ·ln δ = 0.0123 (the
entropy is steepest at p = 0); Overlap can flip only where a prediction lies within δ of one half.
In all other voxels attention is off by at most 0.0143 from the input and 0.0038 from the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from atlas_core.records import Reading

from atlas_attention.fusion.agreement import Counts, no_counts
from atlas_attention.fusion.fused import (
    Fused,
    SoftPredictions,
    fuse_block,
    require_form,
    require_same_width,
)
from atlas_attention.fusion.opened import Opening, open_attention
from atlas_attention.fusion.released import ReleasedFuser, fuse_released
from atlas_attention.fusion.threads import Threads


class Fuser(Protocol):
    """Fuses a volume that arrives in slabs of rising z."""

    def push(self, soft: SoftPredictions) -> Fused:
        """Adds a slab, uint8 ``[model, organ, z, y, x]``; returns the slices that are final now.

        Slices come out in order, each exactly once, and may lag behind by a few (even by all).

        Raises:
            InvalidInput, LimitExceeded: a slab of a wrong form, or of another size than the first.
        """

    def finish(self) -> Fused:
        """The slices that remain (none, in reading `paper`)."""

    @property
    def counts(self) -> Counts:
        """Of the whole volume, once finished; of no organ before the first slab."""


class PaperFuser:
    """Reading `paper` needs no neighbouring slices: every slab is final at once."""

    def __init__(self, *, threads: Threads = None) -> None:
        self._threads = threads
        self._first: SoftPredictions | None = None
        self.counts = no_counts(1, 0)

    def push(self, soft: SoftPredictions) -> Fused:
        """See `Fuser.push`."""
        require_same_width(self._first, soft)
        require_form(soft)
        if self._first is None:
            self.counts = no_counts(*soft.shape[:2])
        fused = fuse_block(soft, counts=self.counts, threads=self._threads)
        self._first = soft[:, :, :0]
        return fused

    def finish(self) -> Fused:
        """See `Fuser.finish`."""
        if self._first is None:
            return Fused.empty(0, 0, 0)
        return Fused.empty(self._first.shape[1], *self._first.shape[3:])


class OpenedFuser(PaperFuser):
    """Reading `opened`: that of the paper, opened; lags `opened.HALO` slices behind."""

    def __init__(self, *, threads: Threads = None) -> None:
        super().__init__(threads=threads)
        self._opening = Opening(threads)

    def push(self, soft: SoftPredictions) -> Fused:
        """See `Fuser.push`."""
        return self._opening.push(super().push(soft))

    def finish(self) -> Fused:
        """See `Fuser.finish`."""
        return self._opening.finish()


_FUSERS: Final[Mapping[Reading, type[PaperFuser | ReleasedFuser]]] = {
    Reading.PAPER: PaperFuser,
    Reading.RELEASED: ReleasedFuser,
    Reading.OPENED: OpenedFuser,
}


def open_fuser(reading: Reading, *, threads: Threads = None) -> Fuser:
    """A new fuser for one volume.

    Args:
        reading: how soft predictions become attention.
        threads: see `threads.Threads`.
    """
    return _FUSERS[reading](threads=threads)


def fuse(
    soft: SoftPredictions,
    reading: Reading = Reading.PAPER,
    *,
    out: Fused | None = None,
    counts: Counts | None = None,
    threads: Threads = None,
) -> Fused:
    """Attention, mean and pseudo label of a whole volume.

    Args:
        soft: uint8 ``[model, organ, z, y, x]``, p = v / 255.
        reading: how soft predictions become attention.
        out: memory for the result: what an earlier call returned, with any content; None: new
            memory. A system takes longer to provide a gigabyte of fresh memory than fusing does.
        counts: from `agreement.no_counts`; those of this volume are added.
        threads: see `threads.Threads`.

    Raises:
        InvalidInput, LimitExceeded: see `fused.require_soft` and `require_out`.

    >>> import numpy as np
    >>> soft = np.array([[[255, 255, 0]], [[255, 0, 0]]], np.uint8).reshape(2, 1, 1, 1, 3)
    >>> fused = fuse(soft)
    >>> fused.attention.ravel().tolist(), fused.label.ravel().tolist()
    ([0, 68, 0], [1, 0, 0])
    """
    if reading is Reading.RELEASED:
        return fuse_released(soft, out=out, counts=counts, threads=threads)
    fused = fuse_block(soft, out=out, counts=counts, threads=threads)
    if reading is Reading.OPENED:
        open_attention(fused.attention, threads)
    return fused
