"""Fusion of members that know different organs.

The members that know an organ are its *voices*. For organ c with voices V(c), N(c) = |V(c)|:

    Inconsistency (Eq. 1)   standard deviation of p_n over n in V(c); of one voice 0
    Uncertainty   (Eq. 2)   −Σ_{n in V(c)} p_n · ln p_n / N(c)
    Overlap       (Eq. 3)   1 if a voice has p > 0.5 for c, and any member for another organ
    Attention     (Eq. 4)   the sum of the three
    Pseudo label            the organ of the largest mean over its own voices, if above 0.5
    Disagreement            over the pairs of V(c); of one voice: 1 − the Dice that it expects

Reading `released` follows from it: its terms and openings over V(c), its overlap by the means.
So does `opened`: the opening comes last, over Eq. 4.

Organs with the same voices form a *panel*. Each panel is fused by the kernels of an ensemble that
knows nothing else; what joins the panels is overlap and the pseudo label. Overlap is a whole number
of steps of the attention byte, so that adding it after the rounding gives what one pass over all
organs would give, to the bit. Between organs of different panels the pseudo label compares means
rounded to bytes (half down, as in `Fused.mean`), ties going to the lower channel: two sums over
different numbers of voices have no common unit. A single panel is passed through unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from atlas_core.records import Reading
from numba import njit
from numpy.typing import NDArray

from atlas_attention.fusion.agreement import disagreement, mean_probability_sum
from atlas_attention.fusion.fused import Fused, SoftPredictions
from atlas_attention.fusion.fusion import Fuser
from atlas_attention.fusion.kernels import ATTENTION_LEVELS, TILE
from atlas_attention.fusion.opened import Opening
from atlas_attention.fusion.threads import Threads, parallel_for

ScalarT = TypeVar("ScalarT", bound=np.generic)


@dataclass(frozen=True)
class Panel:
    """Organs that the same members know.

    Attributes:
        members: indices of the voices, rising.
        organs: channels of the ensemble, rising.
    """

    members: tuple[int, ...]
    organs: tuple[int, ...]


def panels(known: Sequence[Collection[int]]) -> tuple[Panel, ...]:
    """The panels of an ensemble, by their first organ.

    Args:
        known: of each member the channels of the ensemble that it knows.

    >>> panels([{0, 1}, {0, 1, 2}])
    (Panel(members=(0, 1), organs=(0, 1)), Panel(members=(1,), organs=(2,)))
    """
    by_voices: dict[tuple[int, ...], list[int]] = {}
    for organ in sorted(set().union(*known)):
        voices = tuple(member for member, organs in enumerate(known) if organ in organs)
        by_voices.setdefault(voices, []).append(organ)
    return tuple(Panel(voices, tuple(organs)) for voices, organs in by_voices.items())


class PanelFuser:
    """Fuses a volume whose organs have different voices, in slabs of rising z.

    Args:
        panels: together they have every organ once.
        reading: how soft predictions become attention.
        open_fuser: a new fuser for the panel's part of the volume in the reading `paper` or
            `released`; see `fusion.open_fuser`. What is opened is what the panels give together.
        threads: see `threads.Threads`.
    """

    def __init__(
        self,
        panels: tuple[Panel, ...],
        reading: Reading,
        open_fuser: Callable[[Reading], Fuser],
        threads: Threads = None,
    ) -> None:
        self._panels = panels
        self._by_peak = reading is not Reading.RELEASED
        self._threads = threads
        self._opening = Opening(threads) if reading is Reading.OPENED else None
        self._fusers = [open_fuser(Reading.PAPER if self._by_peak else reading) for _ in panels]

    @property
    def voices(self) -> NDArray[np.int64]:
        """How many members know each organ, ``[organ]``."""
        return self._by_organ(
            [np.full(len(p.organs), len(p.members), np.int64) for p in self._panels]
        )

    def push(self, soft: Sequence[SoftPredictions]) -> Fused:
        """Adds a slab, of each panel uint8 ``[voice, organ of the panel, z, y, x]``; returns the
        slices that are final now. See `fusion.Fuser.push`."""
        parts = [fuser.push(part) for fuser, part in zip(self._fusers, soft, strict=True)]
        # Reading `paper` never lags, so these are the soft predictions of the very slices.
        fused = self._joined(parts, soft if self._by_peak else [f.mean[None] for f in parts])
        return fused if self._opening is None else self._opening.push(fused)

    def finish(self) -> Fused:
        """The slices that remain (none, in reading `paper`)."""
        if self._opening is not None:
            return self._opening.finish()
        fused = [fuser.finish() for fuser in self._fusers]
        return self._joined(fused, [f.mean[None] for f in fused])

    def disagreement(self) -> NDArray[np.float64]:
        """Of the whole volume, once finished; ``[organ]``, 0..1."""
        return self._by_organ(
            [disagreement(f.counts, len(p.members)) for f, p in self._with_panels()]
        )

    def mean_probability_sum(self) -> NDArray[np.float64]:
        """Σ over the voxels of the mean soft prediction, ``[organ]``, once finished."""
        return self._by_organ(
            [mean_probability_sum(f.counts, len(p.members)) for f, p in self._with_panels()]
        )

    def _with_panels(self) -> list[tuple[Fuser, Panel]]:
        return list(zip(self._fusers, self._panels, strict=True))

    def _by_organ(self, of_panels: Sequence[NDArray[ScalarT]]) -> NDArray[ScalarT]:
        """Values of the organs of each panel as those of all organs, in the ensemble's order."""
        joined = np.concatenate(of_panels)
        channels = np.concatenate([panel.organs for panel in self._panels])
        return joined[np.argsort(channels)]

    def _joined(self, fused: list[Fused], claims: Sequence[NDArray[np.uint8]]) -> Fused:
        """One result from those of the panels; that of a single one as it is.

        Args:
            claims: of each panel ``[k, organ, z, y, x]``; an organ claims a voxel (Eq. 3) where any
                of the k bytes is above one half.
        """
        if len(fused) == 1:
            return fused[0]
        grid = fused[0].label.shape
        voxels, tiles = fused[0].label.size, -(-fused[0].label.size // TILE)
        organs = sum(len(panel.organs) for panel in self._panels)
        attention = np.zeros((organs, voxels), np.uint8)
        mean = np.zeros((organs, voxels), np.uint8)
        label = np.zeros(voxels, np.uint8)
        planes = [
            (
                claim.reshape(*claim.shape[:2], -1), part.attention.reshape(len(panel.organs), -1),
                part.mean.reshape(len(panel.organs), -1), np.array(panel.organs),
                np.ones((tiles, len(panel.organs)), np.bool_)
                if part.written is None
                else part.written,
            )
            for claim, part, panel in zip(claims, fused, self._panels, strict=True)
        ]  # fmt: skip

        def kernel(first: int, last: int) -> None:
            for tile in range(first, last):
                here = slice(tile * TILE, min(voxels, (tile + 1) * TILE))
                claimed = np.zeros((len(planes) + 1, here.stop - here.start), np.uint8)
                best = np.zeros(claimed.shape[1], np.uint16)
                for panel, (claim, *_, written) in enumerate(planes):
                    _count_claims(claim[:, :, here], written[tile], claimed[panel])
                claimed[:-1].sum(axis=0, dtype=np.uint8, out=claimed[-1])
                for panel, (claim, attended, means, channels, written) in enumerate(planes):
                    _join_panel(
                        claim[:, :, here], written[tile], channels, claimed[panel], claimed[-1],
                        np.uint8(ATTENTION_LEVELS), attended[:, here], means[:, here],
                        attention[:, here], mean[:, here], best,
                    )  # fmt: skip
                _name(best, label[here])

        parallel_for(kernel, tiles, self._threads)
        return Fused(
            attention.reshape(organs, *grid), mean.reshape(organs, *grid), label.reshape(grid)
        )


# See `kernels` on why these take nothing from other files.


@njit(cache=True, nogil=True)
def _claims(planes, organ, claim):  # type: ignore[no-untyped-def]
    """Whether any of `planes` ``[k, organ, voxel]`` is above one half, as 0 or 1 per voxel."""
    claim[:] = 0
    for n in range(planes.shape[0]):
        row = planes[n, organ]
        for i in range(row.size):
            claim[i] |= row[i] >> 7


@njit(cache=True, nogil=True)
def _count_claims(planes, written, claimed):  # type: ignore[no-untyped-def]
    """Adds to `claimed` ``[voxel]`` how many organs claim it; those not `written` do not."""
    claim = np.empty(claimed.size, np.uint8)
    for organ in range(planes.shape[1]):
        if written[organ]:
            _claims(planes, organ, claim)
            for i in range(claim.size):
                claimed[i] += claim[i]


@njit(cache=True, nogil=True)
def _join_panel(  # type: ignore[no-untyped-def]
    planes, written, channels, claimed, claimed_by_all, step, attended, means, attention, mean, best
):
    """Copies one panel's results to its `channels`, with the overlap that it could not see: `step`
    more where its organ claims a voxel, no other of the panel does, but one of another panel.
    `best` ``[voxel]`` gets the largest mean so far, and whose it is."""
    claim = np.empty(claimed.size, np.uint8)
    for organ in range(planes.shape[1]):
        if not written[organ]:
            continue
        _claims(planes, organ, claim)
        channel = channels[organ]
        source = attended[organ]
        target = attention[channel]
        for i in range(claim.size):
            met = (claim[i] != 0) & (claimed[i] < 2) & (claimed_by_all[i] > 1)
            target[i] = source[i] + (step if met else np.uint8(0))
        source = means[organ]
        target = mean[channel]
        name = np.uint16(255 - channel)
        for i in range(claim.size):
            target[i] = source[i]
            best[i] = max(best[i], np.uint16(np.uint16(source[i]) << 8 | name))


@njit(cache=True, nogil=True)
def _name(best, label):  # type: ignore[no-untyped-def]
    """1 + channel of the largest mean where it is above one half, else 0."""
    for i in range(label.size):
        chosen = np.uint8(0) - np.uint8(best[i] & 255)
        label[i] = chosen if best[i] >> 15 else np.uint8(0)
