"""What runs over many cases have in common: which cases, the outcome of each, and observers.

Nothing here knows Prefect, nor how a case is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeVar

from atlas_core.errors import AtlasError
from atlas_core.frozen_model import FrozenModel
from pydantic import Field, ValidationInfo, field_validator

if TYPE_CHECKING:
    from atlas_core.catalog import Catalog


class Outcome(StrEnum):
    SCORED = "scored"
    ASSEMBLED = "assembled"
    RELEASED = "released"
    IMPORTED = "imported"
    PUSHED = "pushed"
    FOUND = "found"
    """The store held the result already; only the catalog was brought up to date."""
    FAILED = "failed"
    NOT_TRIED = "not tried"
    """The run ended before its turn, or what it needs did not answer."""


class CaseOutcome(FrozenModel):
    """The outcome of one case."""

    case_id: str
    outcome: Outcome
    seconds: float = 0.0
    message: str = Field(default="", description="Why it failed; no patient data.")

    @field_validator("message")
    @classmethod
    def _without_case(cls, message: str, info: ValidationInfo) -> str:
        """Most errors begin with their case, which has a field here and is shown beside it."""
        return message.removeprefix(f"{info.data.get('case_id')}: ")

    @property
    def good(self) -> bool:
        return self.outcome not in (Outcome.FAILED, Outcome.NOT_TRIED)


def not_tried(outcomes: Iterable[CaseOutcome]) -> int:
    """How many cases the run ended before."""
    return sum(case.outcome is Outcome.NOT_TRIED for case in outcomes)


class RunSummary(FrozenModel):
    """The outcomes of one run."""

    skipped: int = Field(description="Cases whose result was there and up to date.")
    outcomes: tuple[CaseOutcome, ...]
    seconds: float

    def count(self, outcome: Outcome) -> int:
        return sum(case.outcome is outcome for case in self.outcomes)

    @property
    def failures(self) -> tuple[CaseOutcome, ...]:
        return tuple(case for case in self.outcomes if not case.good)

    def failures_as_markdown(self, most: int | None = None) -> list[str]:
        """Lines of a table of the first `most` failures (None: all) and why; none without any."""
        if not self.failures:
            return []
        shown = self.failures[:most]
        lines = ["", "| case | outcome | why |", "|---|---|---|"]
        lines += [
            f"| {case.case_id} | {case.outcome} | {case.message.replace('|', '/')} |"
            for case in shown
        ]
        left = len(self.failures) - len(shown)
        return [*lines, "", f"and {left} more"] if left else lines


SummaryT = TypeVar("SummaryT", bound=RunSummary)


class CasesFailed(AtlasError, Generic[SummaryT]):
    """A run ended, and some of its cases are not done. All others are, and stay so.

    Args:
        summary: of the run.
        done: what should have happened to them all, as a participle.
    """

    def __init__(self, summary: SummaryT, done: str) -> None:
        self.summary = summary
        failed = summary.failures
        shown = "; ".join(f"{case.case_id}: {case.message}" for case in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        total = len(summary.outcomes) + summary.skipped
        super().__init__(f"{len(failed)} of {total} cases are not {done}: {shown}{more}")


Observer = Callable[[int, int, CaseOutcome], None]
"""Takes the number of cases that are done, of all cases, and the outcome of the last one."""


class ProgressCounter:
    """Counts outcomes across threads, and calls an observer after each case. A case that was not
    tried is not done."""

    def __init__(self, total: int, observer: Observer) -> None:
        self.total = total
        self._observer = observer
        self._done = 0
        self._lock = threading.Lock()

    def add(self, outcome: CaseOutcome) -> None:
        # The observer is called under the lock, so that it sees counts in order.
        with self._lock:
            self._done += outcome.outcome is not Outcome.NOT_TRIED
            self._observer(self._done, self.total, outcome)


_observer: ContextVar[Observer | None] = ContextVar("case_observer", default=None)


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Within the block, runs of this process call `observer` after each case."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def current_observer() -> Observer | None:
    """The observer set by `observed_by`; None where there is none."""
    return _observer.get()


def candidates(catalog: Catalog, dataset: str | None, case_ids: Iterable[str]) -> list[str]:
    """The cases that a run is asked for: those of `dataset` (None: of all) that are named, in the
    order given; all of it if none is.

    Raises:
        NotFound: an unknown dataset or case.
    """
    if dataset is not None:
        catalog.dataset(dataset)  # a typing error must not look like an empty dataset
    named = list(dict.fromkeys(case_ids))
    if not named:
        return [case.id for case in catalog.cases(dataset)]
    chosen = [catalog.case(case_id) for case_id in named]
    return [case.id for case in chosen if dataset in (None, case.dataset)]
