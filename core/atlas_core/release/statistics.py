"""Organ volumes of a release: medians and quartiles per dataset and organ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from atlas_core.release.plan import ReleasePlan

ALL: Final = "(all)"
"""Name of the row over all datasets; not a valid dataset name."""


@dataclass(frozen=True)
class VolumeStatistics:
    """Volumes of one organ in one dataset, in millilitres, over the cases that have the organ.

    Attributes:
        dataset, organ: which.
        cases: number of cases with the organ.
        absent: number of cases without it.
        minimum, q1, median, q3, maximum, mean: None where no case has it.
    """

    dataset: str
    organ: str
    cases: int
    absent: int
    minimum: float | None
    q1: float | None
    median: float | None
    q3: float | None
    maximum: float | None
    mean: float | None

    def as_row(self) -> dict[str, object]:
        """The row of a table, volumes with three decimals."""
        numbers = {
            "min_ml": self.minimum,
            "q1_ml": self.q1,
            "median_ml": self.median,
            "q3_ml": self.q3,
            "max_ml": self.maximum,
            "mean_ml": self.mean,
        }
        return {
            "dataset": self.dataset,
            "organ": self.organ,
            "cases": self.cases,
            "absent": self.absent,
            **{name: "" if ml is None else f"{ml:.3f}" for name, ml in numbers.items()},
        }


def volume_statistics(plan: ReleasePlan) -> tuple[VolumeStatistics, ...]:
    """One row per organ over all datasets, then one per dataset and organ.

    Quartiles are interpolated linearly between the nearest values.
    """
    found = []
    for name in (ALL, *(dataset.name for dataset in plan.datasets)):
        cases = [case for case in plan.cases if name in (ALL, case.case.dataset)]
        for organ in plan.scheme.names:
            volumes = [case.assembly.by_organ[organ].volume_ml for case in cases]
            if volumes:
                found.append(_row(name, organ, volumes))
    return tuple(found)


def _row(dataset: str, organ: str, volumes: Sequence[float]) -> VolumeStatistics:
    there = sorted(ml for ml in volumes if ml > 0)
    absent = len(volumes) - len(there)
    if not there:
        return VolumeStatistics(dataset, organ, 0, absent, None, None, None, None, None, None)
    low, q1, median, q3, high = (float(ml) for ml in np.percentile(there, (0, 25, 50, 75, 100)))
    mean = sum(there) / len(there)
    return VolumeStatistics(dataset, organ, len(there), absent, low, q1, median, q3, high, mean)
