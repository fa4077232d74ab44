"""The arithmetic of §3.3: what revising the top of a list costs, against annotating everything.

Pure functions. With the paper's own numbers: 60 minutes × 8 organs × 8,000 volumes = 1,600 weeks
(30.8 years); 400 volumes × 15 minutes = 12.5 days; 60 × 8 / 15 = 32 times faster per volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from atlas_core.frozen_model import FrozenModel
from atlas_core.review import MINUTES_PER_CASE, Throughput
from pydantic import Field

MINUTES_PER_ORGAN: Final = 60.0
"""What a trained annotator needs for one organ of one CT by hand (§3.3, after Park et al.)."""

MEASURED_MINUTES: Final[Mapping[str, float]] = {
    "spleen": 29.0,
    "kidney_right": 27.0,
    "kidney_left": 24.0,
    "gall_bladder": 10.0,
    "liver": 40.0,
    "stomach": 32.0,
    "aorta": 21.0,
    "postcava": 28.0,
    "pancreas": 19.0,
}
"""The paper's own reader study (Table 4, column Average)."""

HOURS_PER_DAY, DAYS_PER_WEEK, WEEKS_PER_YEAR = 8.0, 5.0, 52.0
"""An 8-hour workday, five days a week (§3.3)."""


class WorkTime(FrozenModel):
    """An amount of work, in four units."""

    minutes: float = Field(ge=0)
    days: float = Field(description="Of 8 hours.")
    weeks: float = Field(description="Of 5 days.")
    years: float = Field(description="Of 52 weeks.")

    @classmethod
    def of(cls, minutes: float) -> WorkTime:
        days = minutes / 60.0 / HOURS_PER_DAY
        weeks = days / DAYS_PER_WEEK
        return cls(minutes=minutes, days=days, weeks=weeks, years=weeks / WEEKS_PER_YEAR)


class RecordedWork(FrozenModel):
    """What annotators did, as the review service recorded it."""

    tasks: int = Field(ge=0, description="Finished tasks; one that was reopened counts again.")
    minutes: float = Field(ge=0)
    annotators: int = Field(ge=0)

    @property
    def minutes_per_task(self) -> float | None:
        return self.minutes / self.tasks if self.tasks else None


class Efficiency(FrozenModel):
    """Work by hand, work in the loop, and their ratio; `None` where nothing was recorded."""

    cases: int = Field(ge=0, description="Cases in the atlas.")
    organs: int = Field(ge=0, description="Organs per case.")
    missing_labels: int = Field(
        ge=0, description="Pairs of case and organ without an original label."
    )
    revised_cases: int = Field(ge=0, description="Cases that annotators revised or confirmed.")
    minutes_per_organ: float
    minutes_per_case: float
    by_hand: WorkTime = Field(description="Every organ of every case at `minutes_per_organ`.")
    by_hand_missing: WorkTime = Field(description="Only organs without an original label.")
    by_hand_measured: WorkTime = Field(description="As `by_hand`, with the minutes of Table 4.")
    in_loop: WorkTime = Field(description="Revised cases at `minutes_per_case`.")
    factor_per_case: float = Field(description="organs · minutes_per_organ / minutes_per_case.")
    factor: float | None = Field(description="by_hand / in_loop.")
    recorded: RecordedWork | None = Field(description="As the review service recorded it.")
    in_loop_recorded: WorkTime | None
    factor_per_case_recorded: float | None
    factor_recorded: float | None = Field(description="by_hand / in_loop_recorded.")


def recorded_work(throughput: Sequence[Throughput]) -> RecordedWork | None:
    """What all annotators did together; None where nothing is recorded."""
    tasks = sum(one.tasks for one in throughput)
    if not tasks:
        return None
    return RecordedWork(
        tasks=tasks,
        minutes=sum(one.seconds for one in throughput) / 60.0,
        annotators=len(throughput),
    )


def efficiency(
    cases: int,
    organs: Sequence[str],
    *,
    missing_labels: int | None = None,
    revised_cases: int,
    recorded: RecordedWork | None = None,
    minutes_per_organ: float = MINUTES_PER_ORGAN,
    minutes_per_case: float = MINUTES_PER_CASE,
) -> Efficiency:
    """§3.3 for an atlas of `cases` with `organs`, of which `revised_cases` were looked at.

    Args:
        missing_labels: pairs of case and organ without an original label; None: all.
        recorded: times of the revision tasks, if there are any.

    >>> paper = efficiency(8000, [f"organ_{n}" for n in range(8)], revised_cases=400)
    >>> (paper.by_hand.weeks, round(paper.by_hand.years, 1), paper.in_loop.days)
    (1600.0, 30.8, 12.5)
    >>> paper.factor_per_case
    32.0
    """
    by_hand = WorkTime.of(minutes_per_organ * len(organs) * cases)
    missing = len(organs) * cases if missing_labels is None else missing_labels
    in_loop = WorkTime.of(revised_cases * minutes_per_case)
    measured = sum(MEASURED_MINUTES.get(organ, minutes_per_organ) for organ in organs)
    per_task = recorded.minutes_per_task if recorded else None
    return Efficiency(
        cases=cases,
        organs=len(organs),
        missing_labels=missing,
        revised_cases=revised_cases,
        minutes_per_organ=minutes_per_organ,
        minutes_per_case=minutes_per_case,
        by_hand=by_hand,
        by_hand_missing=WorkTime.of(minutes_per_organ * missing),
        by_hand_measured=WorkTime.of(measured * cases),
        in_loop=in_loop,
        factor_per_case=minutes_per_organ * len(organs) / minutes_per_case,
        factor=_ratio(by_hand.minutes, in_loop.minutes),
        recorded=recorded,
        in_loop_recorded=WorkTime.of(recorded.minutes) if recorded else None,
        factor_per_case_recorded=_ratio(minutes_per_organ * len(organs), per_task),
        factor_recorded=_ratio(by_hand.minutes, recorded.minutes if recorded else None),
    )


def _ratio(whole: float, part: float | None) -> float | None:
    return whole / part if part else None
