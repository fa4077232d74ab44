"""Does attention find what is worth redrawing? Thick errors, told from right voxels around them.

Most wrong voxels are a shell one voxel thick along the border, which the pseudo label's own border
marks as well as anything: that says nothing. A *thick* error survives an opening with 3 × 3 × 3
voxels. Compared are thick errors with right voxels, both within `REACH_MM` of pseudo label or truth
of the organ; thin errors are left out, since marking them is neither right nor wrong. Beside
attention stands the trivial baseline: nearness to the pseudo label's border.

Voxels are counted by score, so that counts of organs and cases add up. Pure functions on arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlas_flows.evaluation.attention_regions import (
    BesideBorder,
    Detection,
    Discrimination,
    RegionRule,
    ShareRow,
    ThickErrors,
    box_around,
    detect,
    total,
)

REACH_MM: Final = 10.0
"""Farther from pseudo label and truth nobody looks for an error of the organ, and voxels are right
without number."""

NEARNESS_STEP_MM: Final = 0.5
"""The baseline's distances are told apart by this."""

LEVELS: Final = 256
"""Scores are bytes."""

OPENING: Final = np.ones((3, 3, 3), np.bool_)


@dataclass(frozen=True)
class LevelCounts:
    """Voxels by score ``[level]``, thick errors and right ones; `+` adds cases up."""

    thick: NDArray[np.int64]
    right: NDArray[np.int64]

    @classmethod
    def of(
        cls, score: NDArray[np.uint8], thick: NDArray[np.bool_], right: NDArray[np.bool_]
    ) -> LevelCounts:
        return cls(*(np.bincount(score[mask], minlength=LEVELS) for mask in (thick, right)))

    def __add__(self, other: LevelCounts) -> LevelCounts:
        return LevelCounts(self.thick + other.thick, self.right + other.right)

    def auroc(self) -> float | None:
        """Chance that a thick error has a higher score than a right voxel, ties by half; None
        where one of them does not occur.

        >>> LevelCounts(np.array([0, 1]), np.array([1, 0])).auroc()
        1.0
        """
        pairs = int(self.thick.sum()) * int(self.right.sum())
        below = np.cumsum(self.right) - self.right
        return float((self.thick * (below + self.right / 2)).sum() / pairs) if pairs else None

    def average_precision(self) -> float | None:
        """Mean precision over all thick errors, of the voxels with at least their score."""
        if not self.thick.sum() or not self.right.sum():
            return None
        found, marked = np.cumsum(self.thick[::-1]), np.cumsum((self.thick + self.right)[::-1])
        precision = found / np.maximum(marked, 1)
        return float((precision * self.thick[::-1]).sum() / self.thick.sum())


Scored = tuple[LevelCounts, LevelCounts]
"""Counts of one organ by attention, and by nearness to the border."""


def compare_with_border(
    pseudo: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    attention: NDArray[np.uint8],
    spacing_mm: Sequence[float],
) -> Scored:
    """Count the voxels of one organ of one case.

    Args:
        pseudo, truth: masks ``[i, j, k]``.
        attention: bytes of the map on the same grid.
        spacing_mm: of voxels along i, j, k.
    """
    margin = [math.ceil(REACH_MM / step) + 1 for step in spacing_mm]
    box = tuple(
        slice(max(0, part.start - more), part.stop + more)
        for part, more in zip(box_around(pseudo, truth), margin, strict=True)
    )
    pseudo, truth, attention = pseudo[box], truth[box], attention[box]
    either = pseudo | truth
    near = _distance_mm(either, spacing_mm) <= REACH_MM
    error = pseudo ^ truth
    # Outside of the volume nothing is known: an error that reaches its side is not thin there.
    thick = ndimage.binary_opening(np.pad(error, 1, mode="edge"), OPENING)[1:-1, 1:-1, 1:-1]
    right = near & ~error
    return (
        LevelCounts.of(attention, thick, right),
        LevelCounts.of(_nearness(pseudo, spacing_mm), thick, right),
    )


def thick_errors(found: Iterable[Scored]) -> ThickErrors:
    """Pooled over organs and cases."""
    nothing = LevelCounts(np.zeros(LEVELS, np.int64), np.zeros(LEVELS, np.int64))
    attention, border = nothing, nothing
    for by_attention, by_border in found:
        attention, border = attention + by_attention, border + by_border
    thick, right = int(attention.thick.sum()), int(attention.right.sum())
    return ThickErrors(
        thick_share=thick / (thick + right) if thick + right else None,
        scores=tuple(
            Discrimination(
                score=name, auroc=counts.auroc(), average_precision=counts.average_precision()
            )
            for name, counts in (("attention", attention), ("border", border))
        ),
    )


def border_of(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The outermost voxels of a mask, one voxel thick: the trivial baseline of Table 1."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask, border_value=True))


def _nearness(pseudo: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.uint8]:
    """Byte that falls with the distance to the mask's border, 0 where there is no mask."""
    steps = _distance_mm(border_of(pseudo), spacing_mm) / NEARNESS_STEP_MM
    return np.asarray(np.clip(LEVELS - 1 - np.rint(steps), 0, LEVELS - 1), np.uint8)


def _distance_mm(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    if not mask.any():
        return np.full(mask.shape, np.inf)  # SciPy would measure to a voxel outside
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing_mm))


SHARES: Final = (0.0, 0.25, 0.5)
"""Parts of a region that must be met: one voxel, a quarter, half."""


@dataclass(frozen=True)
class BorderComparison:
    """One organ of one case: attention and the pseudo label's border as detectors of errors.

    Attributes:
        attention, border: regions counted for each of `SHARES`.
        scored: voxels counted by score.
    """

    attention: tuple[Detection, ...]
    border: tuple[Detection, ...]
    scored: Scored


def compare(
    pseudo: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    attention: NDArray[np.uint8],
    spacing_mm: Sequence[float],
    rule: RegionRule,
    lowest_byte: int,
) -> BorderComparison:
    """Everything that stands beside Table 1, of one organ of one case; see `compare_with_border`.

    Args:
        rule: its `share` does not count.
        lowest_byte: of attention of an attended voxel.
    """
    error, voxel_ml = pseudo ^ truth, math.prod(spacing_mm) / 1000.0
    rules = [rule.model_copy(update={"share": share}) for share in SHARES]
    attended, border = attention >= lowest_byte, border_of(pseudo)
    return BorderComparison(
        tuple(detect(error, attended, voxel_ml, one) for one in rules),
        tuple(detect(error, border, voxel_ml, one) for one in rules),
        compare_with_border(pseudo, truth, attention, spacing_mm),
    )


def beside_border(found: Sequence[BorderComparison]) -> BesideBorder:
    """Pooled over organs and cases."""
    rows = []
    for place, share in enumerate(SHARES):
        attention = total([one.attention[place] for one in found])
        border = total([one.border[place] for one in found])
        rows.append(
            ShareRow(
                share=share,
                sensitivity=attention.sensitivity,
                precision=attention.precision,
                border_sensitivity=border.sensitivity,
                border_precision=border.precision,
            )
        )
    return BesideBorder(shares=tuple(rows), thick=thick_errors(one.scored for one in found))
