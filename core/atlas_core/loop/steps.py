"""The steps an iteration of the loop has completed, and the outcome of the cases it queued.

A step is recorded once, when it is done; a run that resumes an interrupted iteration reads here
what is left to do. Functions over a `Catalog`, as only the loop needs them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from pydantic import Field

from atlas_core.catalog import Catalog, chunks, insert_new
from atlas_core.catalog import tables as t
from atlas_core.frozen_model import FrozenModel
from atlas_core.records import Reading
from atlas_core.review import FINISHED, PENDING, TaskState

_k = t.revision_tasks.c
_s = t.iteration_steps.c

SEEN = (TaskState.REVISED, TaskState.CONFIRMED)
"""States of cases that an annotator has judged; a skipped case may be queued again."""


def record_step(catalog: Catalog, iteration: int, step: str, result: Mapping[str, Any]) -> bool:
    """Record that a step is done.

    Returns:
        False if it was recorded before: what was recorded first stays.
    """
    row = {"t": iteration, "step": step, "result": dict(result), "done_at": datetime.now(UTC)}
    with catalog.transaction(write=True) as connection:
        return bool(insert_new(connection, t.iteration_steps, [row]))


def steps_done(catalog: Catalog, iteration: int) -> dict[str, dict[str, Any]]:
    """Step → its result, in the order of completion."""
    query = sa.select(_s.step, _s.result).where(_s.t == iteration).order_by(_s.done_at, _s.step)
    with catalog.transaction(write=False) as connection:
        return {row.step: dict(row.result) for row in connection.execute(query)}


@dataclass(frozen=True)
class PriorityListName:
    """Identifies the priority list that tasks were opened from.

    Attributes:
        dataset: only its cases; None: all.
    """

    reading: Reading
    ensemble: str
    dataset: str | None = None


class ReviewOutcome(FrozenModel):
    """Outcomes of tasks, counted."""

    revised: int = 0
    confirmed: int = 0
    skipped: int = 0
    pending: int = Field(default=0, description="Open, or waiting for a second reader.")
    gone: int = Field(default=0, description="Their case was deleted.")
    seconds: float = Field(default=0.0, description="Annotators' time.")

    @property
    def confirmed_share(self) -> float:
        """Share of the judged cases whose labels needed no revision; 0 if none was judged."""
        judged = self.revised + self.confirmed
        return self.confirmed / judged if judged else 0.0


def tasks_of(
    catalog: Catalog, name: PriorityListName, before: Collection[int] = ()
) -> tuple[int, ...]:
    """Ids of the tasks that were opened from a priority list, by rank.

    Args:
        before: tasks that an earlier iteration opened from the same list.
    """
    query = sa.select(_k.id).where(_of_list(name)).order_by(_k.rank, _k.id)
    with catalog.transaction(write=False) as connection:
        return tuple(task for task in connection.scalars(query) if task not in before)


def cases_seen(catalog: Catalog, name: PriorityListName, before: Collection[int] = ()) -> set[str]:
    """Cases that an annotator has revised or confirmed. Those that this list queued after the tasks
    `before` do not count, so that a resumed iteration gets the same answer."""
    query = sa.select(_k.id, _k.case_id, _of_list(name)).where(
        _k.state.in_([state.value for state in SEEN])
    )
    with catalog.transaction(write=False) as connection:
        rows = connection.execute(query).all()
    return {case for task, case, of_list in rows if task in before or not of_list}


def review_outcome(catalog: Catalog, tasks: Sequence[int]) -> ReviewOutcome:
    """Outcomes of `tasks` so far."""
    states: dict[str, int] = {}
    seconds = 0.0
    with catalog.transaction(write=False) as connection:
        for ids in chunks(tasks):
            counted = sa.select(_k.state, sa.func.count()).where(_k.id.in_(ids)).group_by(_k.state)
            for state, count in connection.execute(counted):
                states[state] = states.get(state, 0) + count
            spent = sa.select(sa.func.sum(t.revision_work.c.seconds)).where(
                t.revision_work.c.task_id.in_(ids)
            )
            seconds += connection.scalar(spent) or 0.0
    return ReviewOutcome(
        **{state.value: states.get(state.value, 0) for state in FINISHED},
        pending=sum(states.get(state.value, 0) for state in PENDING),
        gone=len(tasks) - sum(states.values()),
        seconds=seconds,
    )


def _of_list(name: PriorityListName) -> sa.ColumnElement[bool]:
    wanted = (_k.reading == name.reading.value) & (_k.ensemble == name.ensemble)
    return wanted if name.dataset is None else wanted & (_k.dataset == name.dataset)
