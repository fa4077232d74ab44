"""Table 1: does the attention map find the errors? Sensitivity and precision over regions.

A *region* is a connected group of voxels (26 neighbours, `label_maps.TOUCHING`) of one organ
of one case. An *error* voxel is one where pseudo label and truth differ (false positive or false
negative of that organ); an *attended* voxel is one whose attention (Eq. 4) reaches the threshold.
Regions smaller than a minimum volume are not counted. An error region is *found* if enough of its
voxels are attended, an attended region is *right* if enough of its voxels are errors; one voxel is
enough unless a share is asked for. What the other side is compared with is every voxel, also those
of regions too small to count.

    sensitivity = found error regions / error regions
    precision   = right attended regions / attended regions

Pure functions on arrays. `docs/explanation/evaluation.md` gives the reasons for this reading.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from atlas_core.errors import GridMismatch
from atlas_core.frozen_model import FrozenModel
from atlas_core.imaging.label_maps import TOUCHING
from atlas_core.records import Reading
from atlas_models.evaluation import Spread
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

ATTENTION_LEVELS: Final = 136
"""Stored attention maps hold bytes of 1/136."""

PAPER_THRESHOLD: Final = 0.2
"""Attention from which a voxel counts as attended in the reading `paper`, whose maps hold some
attention nearly everywhere along a border: what the review page lists as attended, too."""

MIN_REGION_ML: Final = 0.1
"""A cube of 4.6 mm: nothing smaller is worth redrawing, and every border is full of it."""


class RegionRule(FrozenModel):
    """What counts as a region, and when two of them meet."""

    threshold: float = Field(
        default=PAPER_THRESHOLD,
        ge=0,
        le=2,
        description="Attention (Eq. 4) from which a voxel is attended in the reading `paper`. In "
        "`released` every voxel above 0 is: that reading has its thresholds in it.",
    )
    min_ml: float = Field(default=MIN_REGION_ML, ge=0, description="Smaller regions do not count.")
    share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Part of a region's voxels that must meet the other side; 0: one voxel.",
    )

    def lowest_byte(self, reading: Reading) -> int:
        """The smallest stored byte of an attended voxel; never 0."""
        if reading.counts_voxels:
            return 1
        # The tolerance keeps 0.5 · 136 = 68 from becoming 69.
        return max(1, math.ceil(self.threshold * ATTENTION_LEVELS - 1e-9))

    def least_voxels(self, voxel_ml: float) -> int:
        """The smallest region that counts, in voxels of `voxel_ml`; at least 1."""
        return max(1, math.ceil(self.min_ml / voxel_ml - 1e-9))


class Detection(FrozenModel):
    """Regions of one organ of one case, counted."""

    error_regions: int = Field(ge=0)
    errors_found: int = Field(ge=0, description="Error regions that attention meets.")
    attended_regions: int = Field(ge=0)
    attended_right: int = Field(ge=0, description="Attended regions that meet an error.")
    error_ml: float = Field(ge=0, description="All error voxels, also of small regions.")
    error_ml_attended: float = Field(ge=0)
    attended_ml: float = Field(ge=0, description="All attended voxels, also of small regions.")

    @property
    def sensitivity(self) -> float | None:
        """None where there is no error region to find."""
        return _ratio(self.errors_found, self.error_regions)

    @property
    def precision(self) -> float | None:
        """None where nothing is attended."""
        return _ratio(self.attended_right, self.attended_regions)


class DetectionRow(FrozenModel):
    """One organ of Table 1, or all of them."""

    organ: str = Field(description='An organ, or "all".')
    cases: int = Field(ge=0, description="Cases that were looked at.")
    counts: Detection = Field(description="Summed over cases.")
    sensitivity: float | None = Field(description="Of the sums: pooled over cases.")
    precision: float | None
    sensitivity_by_case: Spread = Field(description="Over cases with an error region.")
    precision_by_case: Spread = Field(description="Over cases with an attended region.")


class Discrimination(FrozenModel):
    """How well a score tells thick errors from right voxels."""

    score: str = Field(description='"attention", or "border": nearness to the pseudo label\'s own.')
    auroc: float | None = Field(description="0.5: by chance.")
    average_precision: float | None = Field(description="By chance: the share of thick errors.")


class ThickErrors(FrozenModel):
    """Attention and the trivial baseline on the same voxels, pooled over organs and cases."""

    thick_share: float | None = Field(description="Of thick errors among the compared voxels.")
    scores: tuple[Discrimination, ...]


class ShareRow(FrozenModel):
    """Attention and the pseudo label's border, pooled, where a part of a region must be met."""

    share: float = Field(description="Part of a region's voxels; 0: one voxel.")
    sensitivity: float | None
    precision: float | None
    border_sensitivity: float | None
    border_precision: float | None


class BesideBorder(FrozenModel):
    """Attention beside the trivial baseline: the pseudo label's own border, one voxel thick."""

    shares: tuple[ShareRow, ...]
    thick: ThickErrors


class DetectionTable(FrozenModel):
    """Table 1 for one reading."""

    reading: Reading
    rule: RegionRule
    organs: tuple[DetectionRow, ...]
    overall: DetectionRow = Field(
        description="Pooled over organs; by case as the paper's Avg.: mean over organs of the "
        "organs' means and of their deviations."
    )
    beside_border: BesideBorder | None = Field(
        default=None, description="None where it was not asked for."
    )


def detect(
    error: NDArray[np.bool_], attended: NDArray[np.bool_], voxel_ml: float, rule: RegionRule
) -> Detection:
    """Count the regions of one organ of one case.

    Args:
        error: ``[i, j, k]``, where pseudo label and truth differ.
        attended: ``[i, j, k]`` on the same grid.
        voxel_ml: volume of a voxel in millilitres.

    Raises:
        GridMismatch: arrays of different shapes.

    >>> error = np.array([1, 1, 0, 0, 1], bool).reshape(5, 1, 1)
    >>> attended = np.array([0, 1, 0, 0, 0], bool).reshape(5, 1, 1)
    >>> counts = detect(error, attended, 1.0, RegionRule())
    >>> (counts.error_regions, counts.errors_found, counts.sensitivity, counts.precision)
    (2, 1, 0.5, 1.0)
    """
    if error.shape != attended.shape:
        raise GridMismatch(
            "error and attention have different shapes", expected=error.shape, got=attended.shape
        )
    least = rule.least_voxels(voxel_ml)
    errors, found = _regions(error, attended, least, rule.share)
    regions, right = _regions(attended, error, least, rule.share)
    return Detection(
        error_regions=errors,
        errors_found=found,
        attended_regions=regions,
        attended_right=right,
        error_ml=int(np.count_nonzero(error)) * voxel_ml,
        error_ml_attended=int(np.count_nonzero(error & attended)) * voxel_ml,
        attended_ml=int(np.count_nonzero(attended)) * voxel_ml,
    )


def count_regions(mask: NDArray[np.bool_], voxel_ml: float, rule: RegionRule) -> int:
    """Regions of `mask` that are large enough to count."""
    return _regions(mask, mask, rule.least_voxels(voxel_ml), 0.0)[0]


def tabulate(
    reading: Reading, rule: RegionRule, found: Iterable[tuple[str, Detection]]
) -> DetectionTable:
    """Table 1 out of (organ, counts of one case); the order of the cases does not matter."""
    by_organ: dict[str, list[Detection]] = {}
    for organ, counts in found:
        by_organ.setdefault(organ, []).append(counts)
    organs = tuple(_row(organ, counts) for organ, counts in by_organ.items())
    return DetectionTable(
        reading=reading, rule=rule, organs=organs, overall=_overall(organs, by_organ)
    )


def box_around(*masks: NDArray[Any]) -> tuple[slice, ...]:
    """The smallest box that holds every voxel set in any of `masks`; empty where none is."""
    spans: list[slice] = []
    for axis in range(masks[0].ndim):
        others = tuple(other for other in range(masks[0].ndim) if other != axis)
        inside = np.zeros(masks[0].shape[axis], np.bool_)
        for mask in masks:
            inside |= mask.any(axis=others)
        where = np.flatnonzero(inside)
        spans.append(slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0))
    return tuple(spans)


def _regions(
    mask: NDArray[np.bool_], other: NDArray[np.bool_], least: int, share: float
) -> tuple[int, int]:
    """How many regions of at least `least` voxels `mask` has, and how many of those `other` meets
    in at least `share` of their voxels."""
    box = box_around(mask)
    inside = mask[box]
    if not inside.size:
        return 0, 0
    numbers, count = ndimage.label(inside, structure=TOUCHING)
    sizes = np.bincount(numbers[inside], minlength=count + 1)
    met = np.bincount(numbers[inside & other[box]], minlength=count + 1)
    counts = sizes >= least
    counts[0] = False
    needed = np.maximum(1, np.ceil(share * sizes - 1e-9))
    return int(np.count_nonzero(counts)), int(np.count_nonzero(counts & (met >= needed)))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _row(organ: str, cases: Sequence[Detection]) -> DetectionRow:
    counts = total(cases)
    return DetectionRow(
        organ=organ,
        cases=len(cases),
        counts=counts,
        sensitivity=counts.sensitivity,
        precision=counts.precision,
        sensitivity_by_case=Spread.of([v for c in cases if (v := c.sensitivity) is not None]),
        precision_by_case=Spread.of([v for c in cases if (v := c.precision) is not None]),
    )


def _overall(rows: Sequence[DetectionRow], by_organ: dict[str, list[Detection]]) -> DetectionRow:
    counts = total([one for cases in by_organ.values() for one in cases])
    return DetectionRow(
        organ="all",
        cases=max((row.cases for row in rows), default=0),
        counts=counts,
        sensitivity=counts.sensitivity,
        precision=counts.precision,
        sensitivity_by_case=_over_organs([row.sensitivity_by_case for row in rows]),
        precision_by_case=_over_organs([row.precision_by_case for row in rows]),
    )


def _over_organs(spreads: Sequence[Spread]) -> Spread:
    """The paper's column Avg., which counts the organs that have a figure."""
    return Spread.over_organs(spreads, count=sum(spread.mean is not None for spread in spreads))


def total(cases: Sequence[Detection]) -> Detection:
    """Counts of several organs or cases, added up."""
    return Detection(
        error_regions=sum(c.error_regions for c in cases),
        errors_found=sum(c.errors_found for c in cases),
        attended_regions=sum(c.attended_regions for c in cases),
        attended_right=sum(c.attended_right for c in cases),
        error_ml=math.fsum(c.error_ml for c in cases),
        error_ml_attended=math.fsum(c.error_ml_attended for c in cases),
        attended_ml=math.fsum(c.attended_ml for c in cases),
    )
