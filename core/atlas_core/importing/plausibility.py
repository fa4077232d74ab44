"""Whether voxel values are Hounsfield units, and what was done to them if they are not.

Air is at −1000 HU, fat at −100, soft tissue at 50, bone from 300 on: a histogram shows where they
lie, and from that what went wrong. Padding, which scanners write outside the field of view, says
nothing and never counts as air.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from atlas_core.imaging import ValueRange

AIR_HU: Final = -200
"""Below this there is only air, lung and padding; fat begins at about −150."""

MIN_AIR: Final = 0.001
"""Share of a CT's voxels below `AIR_HU`, at least: a CT shows the air around and inside the body.
Real CTs of chest and abdomen have 37-76 %. An MR has none, as its values begin at 0 or a little
below; nor has a CT that lost its offset of −1024 in a conversion."""

MAX_LABEL_VALUES: Final = 128
"""Whole numbers from 0 to 255, at most so many distinct ones: a label map (TotalSegmentator has
118). An image of so few grey values is not a CT either."""

LOW: Final = -5000
HIGH: Final = 5000
"""Values outside are counted at these ends of the histogram."""

PADDING_GAP_HU: Final = 100
"""The lowest value is padding if nothing lies as close above it: air is never one value alone."""

LOWEST_AIR_HU: Final = -1300
"""Air itself reads no less than this, with noise and rounding; a lone lowest value above may be air
around a body that was cut out."""

TISSUE_HU: Final = (AIR_HU, 300)
"""Fat, soft tissue, blood with contrast agent."""

UNSHIFTED: Final = (850, 1300)
"""Where fat and soft tissue lie if 1024 (or 1000) was never subtracted; else only hard bone is."""

BETWEEN_HU: Final = 400
"""From here to there an unshifted CT has little: lung lies lower. An MR has as much."""

TWICE_SHIFTED: Final = (-1200, -800)
"""Where fat and soft tissue lie if it was subtracted twice."""

IMPOSSIBLE_HU: Final = 4000
"""Denser than bone and teeth: only metal and errors."""

MAX_NORMALISED: Final = 20
"""Width of a range that numbers with fractions have only after normalisation."""

MAX_UNSHIFTED: Final = 0.1
MAX_IMPOSSIBLE: Final = 0.02
MIN_TISSUE: Final = 0.01
"""Shares of the voxels without padding."""

CLIPPED_SHARE: Final = 0.001
"""So many voxels at the very end of the range are no chance: values beyond were cut off."""

REACH_HU: Final = 200
"""A value that is alone so far from the others is one of a drawing, not a cut."""

BESIDE_HU: Final = 20
"""A cut holds more voxels than any of so many values beside it; further in, tissue may have a peak
of its own."""

FINGERPRINT_HU: Final = (-150, 201)
"""Values that survive every usual clipping and 8 bits of window."""


class VoxelSurvey(ValueRange):
    """What the values of a volume, which come in pieces, say about it.

    Attributes:
        voxels: how many.
        histogram: voxels by value, from `LOW` to `HIGH`, rounded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.voxels = 0
        self.histogram = np.zeros(HIGH - LOW + 1, np.int64)
        self._bytes_seen = np.zeros(256, np.bool_)

    def add(self, piece: NDArray[Any]) -> None:
        """Look at one-dimensional, non-empty `piece`."""
        super().add(piece)
        self.voxels += piece.size
        if (
            piece.dtype.kind == "f"
        ):  # what is not finite is refused by the reader, after the last piece
            piece_hu = np.nan_to_num(np.rint(piece), nan=0.0, posinf=HIGH, neginf=LOW)
        else:
            piece_hu = piece.astype(np.int32)
        bins = np.clip(piece_hu, LOW, HIGH).astype(np.int32) - LOW
        self.histogram += np.bincount(bins, minlength=self.histogram.size)
        if self.fits(np.uint8):
            self._bytes_seen[piece.astype(np.uint8)] = True

    def looks_like_labels(self) -> bool:
        """Whether the values are those of a label: few distinct whole numbers from 0 to 255."""
        return self.fits(np.uint8) and int(self._bytes_seen.sum()) <= MAX_LABEL_VALUES

    @property
    def padding(self) -> tuple[int, ...]:
        """The values outside the field of view, rising."""
        alone = self._alone()
        if self._unshifted(alone):
            return alone
        return tuple(value for value in alone if value < LOWEST_AIR_HU)

    def _alone(self) -> tuple[int, ...]:
        """The lowest values, as long as each has nothing close above it."""
        found = (np.flatnonzero(self.histogram) + LOW).tolist()
        alone = []
        for value, above in pairwise(found):
            if value >= AIR_HU or above - value < PADDING_GAP_HU:
                break
            alone.append(value)
        return tuple(alone)

    def _unshifted(self, padding: tuple[int, ...]) -> bool:
        """Whether air lies about 0 and the body about 1024, and hardly anything between them."""
        inside = self._inside(padding)
        least = int(np.flatnonzero(inside)[0]) + LOW
        dense = _count(inside, *UNSHIFTED)
        return (
            least > AIR_HU
            and dense > MAX_UNSHIFTED * inside.sum()
            and dense > 2 * _count(inside, BETWEEN_HU, UNSHIFTED[0])
        )

    def _inside(self, padding: tuple[int, ...]) -> NDArray[np.int64]:
        """The histogram without padding."""
        inside = self.histogram.copy()
        inside[[value - LOW for value in padding]] = 0
        return inside

    @property
    def air(self) -> float:
        """Share of voxels of air and lung, of those that are no padding."""
        inside = self._inside(self.padding)
        return _count(inside, LOW, AIR_HU) / max(1, int(inside.sum()))

    def hounsfield_doubt(self) -> str | None:
        """Why the values are not plausible Hounsfield units; None if they are."""
        padding = self.padding
        inside = self._inside(padding)
        voxels, seen = int(inside.sum()), _shown(inside, padding)
        if self.high - self.low <= MAX_NORMALISED and not self.whole:
            return f"values of {self.low:.4g} to {self.high:.4g} were normalised"
        if self._unshifted(padding):
            return f"the intercept (about -1024) was never added: {seen}"
        if int(inside[IMPOSSIBLE_HU - LOW :].sum()) > MAX_IMPOSSIBLE * voxels:
            wrapped = (1 << 16) - 3100 < self.high < 1 << 16
            why = "negative values were stored without a sign" if wrapped else "the slope is wrong"
            return f"values up to {self.high:.4g} are denser than bone; perhaps {why}"
        if _count(inside, *TISSUE_HU) < MIN_TISSUE * voxels:
            if _count(inside, *TWICE_SHIFTED) > MAX_UNSHIFTED * voxels and self.low < LOWEST_AIR_HU:
                return f"the intercept was added twice: {seen}"
            return f"nothing is as dense as fat and soft tissue ({AIR_HU} to 300 HU): {seen}"
        if self.air < MIN_AIR:
            share = f"a CT has air, but {100 * self.air:.2g} % lie below {AIR_HU}"
            if self.whole and self.low >= 0 and self.high <= 255:
                return f"{share}: a window was stored with 8 bits"
            if (clipped := _clipped_below(inside)) is not None:
                return f"{share}: values below {clipped} were cut off"
            return f"{share}, the lowest value is {self.low:.4g}: {seen}"
        return None

    def remarks(self) -> list[str]:
        """What a user should know of Hounsfield units that are taken."""
        found, inside = [], self._inside(self.padding)
        if (low := _clipped_below(inside)) is not None:
            found.append(f"values below {low} HU were cut off: air and lung look the same")
        if (high := _clipped_above(inside)) is not None:
            found.append(f"values above {high} HU were cut off: bone and calcium look the same")
        return found

    def fingerprint(self, shape: tuple[int, ...]) -> str | None:
        """The same for every copy of a scan, whatever its axis order, header and clipping.

        How many voxels have each value from fat to enhanced organs: no two scans share all of these
        counts, and no copy changes them unless it is resampled or cropped.

        Args:
            shape: of the volume, in any axis order.

        Returns:
            SHA-256 in hex; None where too little is inside that range to tell scans apart.
        """
        counts = self.histogram[FINGERPRINT_HU[0] + 1 - LOW : FINGERPRINT_HU[1] - 1 - LOW]
        if np.count_nonzero(counts) < 16:
            return None
        digest = hashlib.sha256(np.array(sorted(shape), "<i8").tobytes())
        digest.update(counts.astype("<i8").tobytes())
        return digest.hexdigest()


def _count(histogram: NDArray[np.int64], low: int, high: int) -> int:
    """Voxels in [low, high)."""
    return int(histogram[low - LOW : high - LOW].sum())


def _clipped_below(histogram: NDArray[np.int64]) -> int | None:
    """Where the lower end was cut off, above air; None if it was not."""
    least = int(np.flatnonzero(histogram)[0]) + LOW
    background = least == 0  # of an MR
    return least if -900 < least < 200 and not background and _spike(histogram, least, 1) else None


def _clipped_above(histogram: NDArray[np.int64]) -> int | None:
    """Where the upper end was cut off, below hard bone; None if it was not."""
    most = int(np.flatnonzero(histogram)[-1]) + LOW
    return most if 100 < most < 1500 and _spike(histogram, most, -1) else None


def _spike(histogram: NDArray[np.int64], end: int, inward: int) -> bool:
    """Whether an end of the range holds far more voxels than the values beside it."""
    count = int(histogram[end - LOW])
    beside = [int(histogram[end + inward * step - LOW]) for step in range(1, REACH_HU)]
    enough = count > CLIPPED_SHARE * histogram.sum()
    return any(beside) and enough and count > 5 * max(beside[:BESIDE_HU])


def _shown(histogram: NDArray[np.int64], padding: tuple[int, ...]) -> str:
    """Where the values lie, in words."""
    total = np.cumsum(histogram)
    low, middle, high = (
        np.searchsorted(total, [q * total[-1] for q in (0.05, 0.5, 0.95)]) + LOW
    ).tolist()
    beside = f", beside padding of {' and '.join(map(str, padding))}" if padding else ""
    return f"most values lie in {low}..{high}, half of them below {middle}{beside}"
