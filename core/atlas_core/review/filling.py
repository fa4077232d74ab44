"""Filling the revision queue: the top of the priority list becomes tasks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import insert_new
from atlas_core.catalog import tables as t
from atlas_core.errors import InvalidInput
from atlas_core.ranking import CaseSizes, is_absent, rank, weight
from atlas_core.records import OrganScore, RankBy, RankedCase, Reading
from atlas_core.review.audit_log import note
from atlas_core.review.records import MINUTES_PER_CASE, AuditEntry, OpenedTasks, TaskState

_k = t.revision_tasks.c


@dataclass(frozen=True)
class Portion:
    """How much of the priority list is revised; exactly one is given.

    Attributes:
        share: of the cases, in (0, 1].
        count: of cases.
        minutes: of annotators' time, at 15 minutes a case (§4.2).
    """

    share: float | None = None
    count: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.share, self.count, self.minutes) if value is not None]
        if len(given) != 1:
            raise InvalidInput("say how much is revised", expected="one of share, count, minutes")
        if not given[0] > 0 or (self.share is not None and self.share > 1):
            raise InvalidInput(
                "say how much is revised", expected="a share of 0..1, or more than 0", got=given[0]
            )

    def of(self, cases: int) -> int:
        """How many of so many cases."""
        if self.share is not None:
            # A share of 0.07 of 100 cases is 7, not 8: floats are rounded before they are cut.
            return math.ceil(round(self.share * cases, 6))
        wanted = (
            self.count if self.count is not None else int(self.minutes or 0) // MINUTES_PER_CASE
        )
        return min(cases, wanted)


@dataclass(frozen=True)
class PriorityListSource:
    """What a priority list is computed from.

    Attributes:
        reading: of the attention maps.
        ensemble: that scored the cases.
        by: what the list is sorted by.
    """

    reading: Reading
    ensemble: str
    by: RankBy = RankBy.DISAGREEMENT


def insert_tasks(
    connection: Connection,
    top: Sequence[RankedCase],
    source: PriorityListSource,
    who: str,
    now: datetime,
) -> OpenedTasks:
    """A task for each case of `top` that has none; see `RevisionQueue.open_tasks`."""
    rows = [
        {
            "case_id": case.case_id,
            "dataset": case.dataset,
            "reading": source.reading.value,
            "ensemble": source.ensemble,
            "rank": case.rank,
            "ranked_by": source.by.value,
            "disagreement": case.disagreement,
            "attention_ml": case.attention_ml,
            "state": TaskState.OPEN.value,
            "created_at": now,
            "updated_at": now,
        }
        for case in top
    ]
    ids = _insert_tasks(connection, rows)
    new = [case for case in top if case.case_id in ids]
    _insert_organs(connection, {ids[case.case_id]: case for case in new}, source.by)
    entries = [
        AuditEntry(
            at=now,
            who=who,
            action="queue",
            case_id=case.case_id,
            task_id=ids[case.case_id],
            detail={"rank": case.rank, "ranked_by": source.by.value},
        )
        for case in new
    ]
    note(connection, *entries)
    tasks = tuple(ids[case.case_id] for case in new)
    return OpenedTasks(created=len(new), already=len(top) - len(new), tasks=tasks)


def ranked_by_organs(
    ranked: Sequence[RankedCase], organs: Collection[str], by: RankBy
) -> list[RankedCase]:
    """The priority list in which `organs` only count."""
    return rank(
        (
            CaseSizes(
                case.case_id,
                case.dataset,
                tuple(organ for organ in case.organs if organ.organ in organs),
            )
            for case in ranked
        ),
        by,
    )


def _insert_tasks(connection: Connection, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Insert the rows whose case has no task yet; case id → id of its new task."""
    new = insert_new(connection, t.revision_tasks, rows, _k.case_id, _k.id)
    return {row.case_id: row.id for row in new}


def _insert_organs(connection: Connection, tasks: Mapping[int, RankedCase], by: RankBy) -> None:
    rows = [
        {"task_id": task_id, "note": ""} | _organ_columns(organ, by)
        for task_id, case in tasks.items()
        for organ in case.organs
    ]
    if rows:
        connection.execute(sa.insert(t.revision_task_organs), rows)


def _organ_columns(organ: OrganScore, by: RankBy) -> dict[str, Any]:
    return {
        "organ": organ.organ,
        "attention_ml": organ.attention_ml,
        "disagreement": None if is_absent(organ) else organ.disagreement,
        "weight": weight(organ, by),
    }
