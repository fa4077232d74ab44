"""§5: false positives of models in cases that lack an organ.

Pure functions. The paper counts kidney tumours on tumour-free CTs: 37 of 392 volumes with at least
one (9.4 %), 161 in all. Here the same for every organ that the truth does not hold (removed, or
outside the CT).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from atlas_core.frozen_model import FrozenModel
from pydantic import Field


class FalseRegions(FrozenModel):
    """What the pseudo label holds of an organ that the case does not have."""

    case_id: str
    organ: str
    regions: int = Field(ge=0, description="Connected groups that are large enough to count.")
    ml: float = Field(ge=0, description="Volume of all voxels, also of small groups.")


class FalsePositiveRow(FrozenModel):
    """One organ, or "all"."""

    organ: str
    cases_without: int = Field(description="Cases whose truth lacks the organ.")
    cases_with_false: int = Field(description="Of those, cases with at least one false region.")
    rate: float | None = Field(description="False-positive rate; None without such a case.")
    regions: int = Field(description="False regions in all of them.")
    ml: float


class FalsePositives(FrozenModel):
    """False-positive rates per organ, and over all pairs of case and missing organ."""

    organs: tuple[FalsePositiveRow, ...]
    overall: FalsePositiveRow


def false_positive_rates(found: Iterable[FalseRegions]) -> FalsePositives:
    """The rates; the order of `found` does not matter, organs come by name."""
    known = sorted(found, key=lambda one: (one.organ, one.case_id))
    organs = sorted({one.organ for one in known})
    return FalsePositives(
        organs=tuple(_row(organ, [o for o in known if o.organ == organ]) for organ in organs),
        overall=_row("all", known),
    )


def _row(organ: str, found: list[FalseRegions]) -> FalsePositiveRow:
    wrong = sum(one.regions > 0 for one in found)
    return FalsePositiveRow(
        organ=organ,
        cases_without=len(found),
        cases_with_false=wrong,
        rate=wrong / len(found) if found else None,
        regions=sum(one.regions for one in found),
        ml=math.fsum(one.ml for one in found),
    )
