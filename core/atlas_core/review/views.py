"""Reading the revision queue: its tasks, their states and their assignees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import Catalog, now
from atlas_core.catalog import tables as t
from atlas_core.errors import NotFound
from atlas_core.review.audit_log import task_history
from atlas_core.review.clock import Clock
from atlas_core.review.leasing import IS_PENDING
from atlas_core.review.records import AuditEntry, Task, TaskCounts, TaskState
from atlas_core.review.rows import TaskRow, tasks_of

_k = t.revision_tasks.c
_o = t.revision_task_organs.c


@dataclass(frozen=True)
class TaskFilter:
    """Selects tasks; None: any.

    Attributes:
        dataset, organ: tasks of this dataset, with this organ.
        state, assignee, case_id: in lists only.
    """

    dataset: str | None = None
    organ: str | None = None
    state: TaskState | None = None
    assignee: str | None = None
    case_id: str | None = None


ANY_TASK: Final = TaskFilter()


class RevisionViews:
    """The current tasks in a catalog. Safe to share between threads.

    Args:
        clock: the current time, in UTC.
    """

    def __init__(self, catalog: Catalog, *, clock: Clock = now) -> None:
        self._catalog = catalog
        self._now = clock

    def task(self, task_id: int) -> Task:
        """One task.

        Raises:
            NotFound: there is none.
        """
        with self._catalog.transaction(write=False) as connection:
            return self._task(connection, task_id)

    def history(self, task_id: int) -> list[AuditEntry]:
        """The audit entries of a task, oldest first."""
        with self._catalog.transaction(write=False) as connection:
            return task_history(connection, task_id)

    def page(self, wanted: TaskFilter, offset: int, limit: int) -> tuple[int, list[Task]]:
        """Number of matching tasks, and `limit` of them from `offset` on, by rank."""
        chosen = self._chosen(wanted)
        with self._catalog.transaction(write=False) as connection:
            total = connection.scalar(
                sa.select(sa.func.count()).select_from(t.revision_tasks).where(chosen)
            )
            query = (
                sa.select(t.revision_tasks)
                .where(chosen)
                .order_by(_k.rank, _k.id)
                .offset(offset)
                .limit(limit)
            )
            rows = connection.execute(query).mappings().all()
            return total or 0, self._tasks(connection, rows)

    def counts(self, wanted: TaskFilter) -> TaskCounts:
        """Tasks by state; `wanted.state` and `wanted.assignee` are ignored."""
        state = self._state_now()
        chosen = self._chosen(replace(wanted, state=None, assignee=None))
        query = sa.select(state, sa.func.count()).where(chosen).group_by(state)
        with self._catalog.transaction(write=False) as connection:
            return TaskCounts(**{row[0]: row[1] for row in connection.execute(query)})

    def datasets(self) -> list[str]:
        """Datasets that have tasks."""
        query = sa.select(_k.dataset).distinct().order_by(_k.dataset)
        with self._catalog.transaction(write=False) as connection:
            return list(connection.scalars(query))

    def case_ids(self, *states: TaskState) -> list[str]:
        """Cases with a finished task in one of `states`, sorted."""
        query = (
            sa.select(_k.case_id)
            .distinct()
            .where(_k.state.in_([state.value for state in states]))
            .order_by(_k.case_id)
        )
        with self._catalog.transaction(write=False) as connection:
            return list(connection.scalars(query))

    def _state_now(self) -> sa.ColumnElement[str]:
        """The state as shown to users: a task with a lease that has not expired is "leased"."""
        leased = IS_PENDING & (_k.lease_expires_at > self._now())
        return sa.case((leased, TaskState.LEASED.value), else_=_k.state)

    def _chosen(self, wanted: TaskFilter) -> sa.ColumnElement[bool]:
        chosen = sa.true() if wanted.dataset is None else _k.dataset == wanted.dataset
        if wanted.organ is not None:
            about = sa.select(_o.task_id).where(_o.organ == wanted.organ)
            chosen = chosen & _k.id.in_(about)
        if wanted.state is not None:
            chosen = chosen & (self._state_now() == wanted.state.value)
        if wanted.assignee is not None:
            chosen = chosen & (_k.assignee == wanted.assignee)
        if wanted.case_id is not None:
            chosen = chosen & (_k.case_id == wanted.case_id)
        return chosen

    def _task(self, connection: Connection, task_id: int) -> Task:
        query = sa.select(t.revision_tasks).where(_k.id == task_id)
        rows = connection.execute(query).mappings().all()
        if not rows:
            raise NotFound("no such task", got=task_id)
        return self._tasks(connection, rows)[0]

    def _tasks(self, connection: Connection, rows: Sequence[TaskRow]) -> list[Task]:
        return tasks_of(connection, rows, self._now())
