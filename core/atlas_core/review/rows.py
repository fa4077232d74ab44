"""Rows of the revision tables as records, and their entries in the audit log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import tables as t
from atlas_core.review.records import PENDING, AuditEntry, Task, TaskOrgan, TaskState

TaskRow = Mapping[Any, Any]
"""A row of `revision_tasks`, by column name."""

_ORGANS_OF: Final = (
    sa.select(
        t.revision_task_organs.c.task_id,
        t.revision_task_organs.c.organ,
        t.revision_task_organs.c.attention_ml,
        t.revision_task_organs.c.disagreement,
        t.revision_task_organs.c.weight,
        t.revision_task_organs.c.verdict,
        t.revision_task_organs.c.error_type,
        t.revision_task_organs.c.note,
    )
    .where(t.revision_task_organs.c.task_id.in_(sa.bindparam("tasks", expanding=True)))
    .order_by(
        t.revision_task_organs.c.weight.desc(),
        t.revision_task_organs.c.attention_ml.desc(),
        t.revision_task_organs.c.organ,
    )
)


def tasks_of(connection: Connection, rows: Sequence[TaskRow], now: datetime) -> list[Task]:
    """Rows of `revision_tasks` as tasks, with their organs."""
    organs: dict[int, list[TaskOrgan]] = {row["id"]: [] for row in rows}
    query = connection.execute(_ORGANS_OF, {"tasks": list(organs)})
    for task_id, organ, attention_ml, disagreement, weight, verdict, error_type, text in query:
        organs[task_id].append(
            TaskOrgan(
                organ=organ,
                attention_ml=attention_ml,
                disagreement=disagreement,
                weight=weight,
                verdict=verdict,
                error_type=error_type,
                note=text,
            )
        )
    return [_as_task(row, tuple(organs[row["id"]]), now) for row in rows]


def _as_task(row: TaskRow, organs: tuple[TaskOrgan, ...], now: datetime) -> Task:
    pending = row["state"] in PENDING
    expires = row["lease_expires_at"]
    live = pending and expires is not None and expires > now
    return Task(
        id=row["id"],
        case_id=row["case_id"],
        dataset=row["dataset"],
        reading=row["reading"],
        ensemble=row["ensemble"],
        rank=row["rank"],
        ranked_by=row["ranked_by"],
        disagreement=row["disagreement"],
        attention_ml=row["attention_ml"],
        state=TaskState.LEASED if live else row["state"],
        assignee=row["assignee"] if live or not pending else None,
        lease_expires_at=expires if live else None,
        second_reader=row["first_reader"] is not None,
        organs=organs,
        updated_at=row["updated_at"],
    )


def audit_entry(
    at: datetime,
    who: str,
    action: str,
    row: TaskRow,
    detail: Mapping[str, Any] | None = None,
) -> AuditEntry:
    """The entry for an action on the task in `row`."""
    return AuditEntry(
        at=at,
        who=who,
        action=action,
        case_id=row["case_id"],
        task_id=row["id"],
        detail=dict(detail or {}),
    )
