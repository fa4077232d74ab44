"""Leasing pending cases to annotators: the busiest statements of the queue.

Statements are built once, as building one takes as long as running it. The condition that a task is
pending is spelled out in them exactly as in the partial index, because a database can only use the
index if it sees the condition at planning time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import tables as t

_k = t.revision_tasks.c
_o = t.revision_task_organs.c

IS_PENDING: Final[sa.ColumnElement[bool]] = sa.literal_column(
    "revision_tasks.state IN ('open', 'second_reading')", sa.Boolean
)

_ASSIGN: Final = (
    sa.update(t.revision_tasks)
    .where(_k.id == sa.bindparam("task"))
    .values(
        assignee=sa.bindparam("who"),
        lease_expires_at=sa.bindparam("expires"),
        updated_at=sa.bindparam("now"),
        page=None,
    )
)

_HELD: Final = (
    sa.select(_k.id, _k.case_id, _k.assignee)
    .where(
        IS_PENDING,
        _k.assignee.in_(sa.bindparam("names", expanding=True)),
        _k.id.not_in(sa.bindparam("but", expanding=True)),
    )
    .with_for_update(of=t.revision_tasks)
)

_HELD_OF_CASE: Final = (
    sa.select(_k.id)
    .where(IS_PENDING, _k.case_id == sa.bindparam("case"), _k.assignee == sa.bindparam("who"))
    .with_for_update(of=t.revision_tasks)
)

_FREE: Final = (
    sa.update(t.revision_tasks)
    .where(_k.id.in_(sa.bindparam("tasks", expanding=True)))
    .values(assignee=None, lease_expires_at=None, updated_at=sa.bindparam("now"))
)


@dataclass(frozen=True)
class LeaseRequest:
    """What a group of annotators asks for.

    Attributes:
        names: the annotators; exactly one if `second_reader`.
        dataset, organ: only cases of this dataset, with this organ; None: any.
        second_reader: also cases that wait for a second reader.
    """

    names: tuple[str, ...]
    dataset: str | None
    organ: str | None
    second_reader: bool


def pick(
    connection: Connection, request: LeaseRequest, now: datetime, expires: datetime
) -> dict[str, dict[str, Any]]:
    """Lease the best pending cases, one to each of `request.names` while there are any.

    On PostgreSQL a row that another transaction has just picked is skipped. SQLite has no row locks
    and needs none: there is one writing transaction at a time.

    Returns:
        Name → row of the task as it is now.
    """
    statement = _statement(
        request.dataset is not None, request.organ is not None, request.second_reader
    )
    parameters = {"now": now, "limit": len(request.names)}
    if request.dataset is not None:
        parameters["dataset"] = request.dataset
    if request.organ is not None:
        parameters["organ"] = request.organ
    if request.second_reader:
        parameters["me"] = request.names[0]
    rows = connection.execute(statement, parameters).mappings().all()
    change = {"lease_expires_at": expires, "updated_at": now}
    picked = {
        name: {**row, "assignee": name, **change}
        for name, row in zip(request.names, rows, strict=False)
    }
    if picked:
        connection.execute(
            _ASSIGN,
            [
                {"task": row["id"], "who": name, "expires": expires, "now": now}
                for name, row in picked.items()
            ],
        )
    return picked


def give_back(
    connection: Connection, names: Sequence[str], but: Sequence[int], now: datetime
) -> Sequence[sa.RowMapping]:
    """Release the tasks that `names` hold, except `but`; returns id, case and holder of each."""
    parameters = {"names": list(names), "but": list(but)}
    held = connection.execute(_HELD, parameters).mappings().all()
    if held:  # rarely: people finish what they have before they ask for more
        connection.execute(_FREE, {"tasks": [row["id"] for row in held], "now": now})
    return held


def held_task(connection: Connection, case_id: str, who: str) -> int | None:
    """The pending task of a case that `who` holds, locked; None if they do not.

    A lease that expired while its annotator was drawing does no harm unless somebody else has
    taken the case.
    """
    return connection.scalar(_HELD_OF_CASE, {"case": case_id, "who": who})


@cache
def _statement(by_dataset: bool, by_organ: bool, second_reader: bool) -> sa.Select[Any]:
    query = sa.select(t.revision_tasks).where(
        IS_PENDING,
        _k.assignee.is_(None)
        | _k.lease_expires_at.is_(None)
        | (_k.lease_expires_at <= sa.bindparam("now", type_=t.UtcDateTime())),
    )
    if second_reader:
        query = query.where(_k.first_reader.is_(None) | (_k.first_reader != sa.bindparam("me")))
    else:
        query = query.where(_k.state == sa.literal_column("'open'"))
    if by_dataset:
        query = query.where(_k.dataset == sa.bindparam("dataset"))
    if by_organ:
        query = (
            query.join(t.revision_task_organs, _o.task_id == _k.id)
            .where(_o.organ == sa.bindparam("organ"))
            .order_by(_o.weight.desc(), _k.id)
        )
    else:
        query = query.order_by(_k.rank, _k.id)
    return query.limit(sa.bindparam("limit", type_=sa.Integer())).with_for_update(
        skip_locked=True, of=t.revision_tasks
    )
