"""Cases as reviewers see them: state, flag and attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import Catalog, now
from atlas_core.catalog import tables as t
from atlas_core.errors import NotFound
from atlas_core.frozen_model import FrozenModel
from atlas_core.records import OrganScore, Reading
from atlas_core.review.audit_log import note
from atlas_core.review.clock import Clock
from atlas_core.review.records import AuditEntry

NOT_QUEUED = "not_queued"
"""State of a case that never had a task."""

_c = t.cases.c
_k = t.revision_tasks.c
_f = t.case_flags.c


class CaseBrief(FrozenModel):
    """One line of a list of cases."""

    id: str
    dataset: str
    state: str
    task_id: int | None = None
    attention_ml: float | None = None
    flagged: bool
    flag_reason: str = ""


@dataclass(frozen=True)
class CaseFilter:
    """Selects cases for a list; None: any."""

    dataset: str | None = None
    state: str | None = None
    flagged: bool | None = None


@dataclass(frozen=True)
class CaseAttention:
    """The attention of one ensemble to a case, under one reading.

    Attributes:
        reading, ensemble, number: name the maps in the case store.
        organs: attention size by organ, largest first.
    """

    reading: Reading
    ensemble: str
    number: int
    organs: tuple[OrganScore, ...]


class CaseReview:
    """Lists and flags over a catalog. Safe to share between threads."""

    def __init__(self, catalog: Catalog, *, clock: Clock = now) -> None:
        self._catalog = catalog
        self._now = clock

    def page(self, wanted: CaseFilter, offset: int, limit: int) -> tuple[int, list[CaseBrief]]:
        """Number of matching cases, and `limit` of them from `offset` on, by id."""
        newest = _newest_tasks()
        state = sa.func.coalesce(newest.c.state, NOT_QUEUED)
        query = (
            sa.select(
                _c.id,
                _c.dataset,
                state.label("state"),
                newest.c.id.label("task_id"),
                newest.c.attention_ml,
                _f.reason,
            )
            .outerjoin(newest, newest.c.case_id == _c.id)
            .outerjoin(t.case_flags, _f.case_id == _c.id)
        )
        for condition in _conditions(wanted, state):
            query = query.where(condition)
        with self._catalog.transaction(write=False) as connection:
            total = connection.scalar(sa.select(sa.func.count()).select_from(query.subquery()))
            rows = connection.execute(query.order_by(_c.id).offset(offset).limit(limit)).mappings()
            return total or 0, [_brief(row) for row in rows]

    def states(self) -> dict[str, int]:
        """Number of cases by state."""
        newest = _newest_tasks()
        state = sa.func.coalesce(newest.c.state, NOT_QUEUED)
        query = (
            sa.select(state, sa.func.count())
            .select_from(t.cases.outerjoin(newest, newest.c.case_id == _c.id))
            .group_by(state)
        )
        with self._catalog.transaction(write=False) as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def labelled(self) -> set[str]:
        """Ids of the cases that have a label, from any source."""
        with self._catalog.transaction(write=False) as connection:
            return set(connection.scalars(sa.select(t.labels.c.case_id).distinct()))

    def stamps(self) -> dict[str, str]:
        """Id of every case that has a label → a text that changes with its labels and scores."""
        labels, scores = t.labels.c, t.scores.c
        last_label = sa.select(labels.case_id, sa.func.max(labels.id)).group_by(labels.case_id)
        last_score = sa.select(scores.case_id, sa.func.max(scores.created_at)).group_by(
            scores.case_id
        )
        with self._catalog.transaction(write=False) as connection:
            scored = {row[0]: row[1] for row in connection.execute(last_score)}
            newest = connection.execute(last_label.order_by(labels.case_id)).all()
        return {case_id: f"{number} {scored.get(case_id)}" for case_id, number in newest}

    def flag(self, case_id: str, who: str, flagged: bool, reason: str) -> None:
        """Flag a case for another look, or remove its flag.

        Raises:
            NotFound: there is no such case.
        """
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            if connection.scalar(sa.select(_c.id).where(_c.id == case_id)) is None:
                raise NotFound("no such case in the catalog", case=case_id)
            connection.execute(sa.delete(t.case_flags).where(_f.case_id == case_id))
            if flagged:
                row = {"case_id": case_id, "reason": reason, "flagged_by": who, "flagged_at": now}
                connection.execute(sa.insert(t.case_flags).values(row))
            action = "flag" if flagged else "unflag"
            detail = {"reason": reason}
            note(
                connection,
                AuditEntry(at=now, who=who, action=action, case_id=case_id, detail=detail),
            )

    def flag_of(self, case_id: str) -> str | None:
        """Why a case is flagged; None if it is not."""
        with self._catalog.transaction(write=False) as connection:
            return connection.scalar(sa.select(_f.reason).where(_f.case_id == case_id))

    def predictions(self, case_id: str) -> list[CaseAttention]:
        """The newest prediction of each reading of a case, by reading."""
        s = t.scores.c
        query = (
            sa.select(s.reading, s.ensemble, s.number)
            .where(s.case_id == case_id)
            .order_by(s.reading, s.created_at.desc(), s.ensemble)
        )
        with self._catalog.transaction(write=False) as connection:
            newest: dict[str, tuple[str, int]] = {}
            for reading, ensemble, number in connection.execute(query):
                newest.setdefault(reading, (ensemble, number))
            return [
                CaseAttention(
                    Reading(reading),
                    ensemble,
                    number,
                    _organ_sizes(connection, case_id, reading, ensemble),
                )
                for reading, (ensemble, number) in newest.items()
            ]


def _organ_sizes(
    connection: Connection, case_id: str, reading: str, ensemble: str
) -> tuple[OrganScore, ...]:
    o = t.organ_scores.c
    query = (
        sa.select(*(o[name] for name in OrganScore.model_fields))
        .where(o.case_id == case_id, o.reading == reading, o.ensemble == ensemble)
        .order_by(o.attention_ml.desc(), o.organ)
    )
    return tuple(OrganScore.model_validate(dict(r)) for r in connection.execute(query).mappings())


def _newest_tasks() -> sa.Subquery:
    """The newest task of every case that has one."""
    last = sa.select(sa.func.max(_k.id)).group_by(_k.case_id)
    return sa.select(_k.id, _k.case_id, _k.state, _k.attention_ml).where(_k.id.in_(last)).subquery()


def _conditions(wanted: CaseFilter, state: sa.ColumnElement[Any]) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.dataset is not None:
        conditions.append(_c.dataset == wanted.dataset)
    if wanted.state is not None:
        conditions.append(state == wanted.state)
    if wanted.flagged is not None:
        conditions.append(_f.case_id.is_not(None) if wanted.flagged else _f.case_id.is_(None))
    return conditions


def _brief(row: sa.RowMapping) -> CaseBrief:
    return CaseBrief(
        id=row["id"],
        dataset=row["dataset"],
        state=row["state"],
        task_id=row["task_id"],
        attention_ml=row["attention_ml"],
        flagged=row["reason"] is not None,
        flag_reason=row["reason"] or "",
    )
