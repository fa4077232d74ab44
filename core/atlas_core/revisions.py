"""The revision queue: which case comes next, who has it, and what became of it (§3.2 ⑤).

Every call is one transaction, and its entry in the audit log is part of it. A case is held by a
lease that ends by itself; of two annotators who ask at once each gets a case of his own: on
PostgreSQL rows that another transaction has picked are skipped (``FOR UPDATE SKIP LOCKED``), on
SQLite transactions that write follow one another (``BEGIN IMMEDIATE``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from atlas_core import catalog_tables as t
from atlas_core.audit_log import note, task_history
from atlas_core.catalog import ROWS_PER_STATEMENT, Catalog
from atlas_core.error_taxonomy import require_error_type
from atlas_core.errors import Conflict, InvalidInput, NotFound
from atlas_core.ranking import CaseSizes, rank
from atlas_core.records import LabelSource, RankedCase, Reading
from atlas_core.revision_picking import IS_PENDING, Wish, give_back, pick
from atlas_core.revision_records import (
    FINISHED,
    MINUTES_PER_CASE,
    PENDING,
    AuditEntry,
    OpenedTasks,
    Task,
    TaskCounts,
    TaskOrgan,
    TaskState,
    Verdict,
)

DEFAULT_LEASE: Final = timedelta(minutes=10)
"""A page renews its lease every minute; after a crash nobody waits for long."""

_ORGANS_OF: Final = (
    sa.select(
        t.revision_task_organs.c.task_id,
        t.revision_task_organs.c.organ,
        t.revision_task_organs.c.attention_ml,
        t.revision_task_organs.c.verdict,
        t.revision_task_organs.c.error_type,
        t.revision_task_organs.c.note,
    )
    .where(t.revision_task_organs.c.task_id.in_(sa.bindparam("tasks", expanding=True)))
    .order_by(t.revision_task_organs.c.attention_ml.desc(), t.revision_task_organs.c.organ)
)

Clock = Callable[[], datetime]

TaskRow = Mapping[Any, Any]
"""A row of `revision_tasks`, by column name."""

_k = t.revision_tasks.c
_o = t.revision_task_organs.c


def _utc_now() -> datetime:
    return datetime.now(UTC)


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
class Wanted:
    """Which tasks somebody wants to see or to have; None: any.

    Attributes:
        dataset, organ: of this dataset, with this organ.
        state, assignee: for lists.
    """

    dataset: str | None = None
    organ: str | None = None
    state: TaskState | None = None
    assignee: str | None = None


ANYTHING: Final = Wanted()


@dataclass(frozen=True)
class Annotator:
    """Who works.

    Attributes:
        name: unique.
        second_reader: may take what another annotator was unsure of.
    """

    name: str
    second_reader: bool = False


class RevisionQueue:
    """The tasks in a catalog. Safe to share between threads; any number of processes may work.

    Args:
        lease: how long a case is held without a word from its annotator.
        clock: the time now, in UTC.
    """

    def __init__(
        self, catalog: Catalog, *, lease: timedelta = DEFAULT_LEASE, clock: Clock = _utc_now
    ) -> None:
        self._catalog = catalog
        self._lease = lease
        self._now = clock

    # Filling the queue

    def open_tasks(
        self,
        portion: Portion,
        who: str,
        *,
        reading: Reading = Reading.PAPER,
        dataset: str | None = None,
        organs: Collection[str] = (),
    ) -> OpenedTasks:
        """Open a task for each case at the top of the priority list that has none.

        A case that this ensemble's list brought up before is left as it is, whatever became of it,
        and so is one that still waits because of another ensemble.

        Args:
            portion: how much of the list.
            who: asks.
            dataset: only its cases; None: all.
            organs: the list counts only these, and the tasks are about these; empty: all.

        Raises:
            NotFound: nothing is scored under this reading.
        """
        ensemble = self._catalog.latest_ensemble(reading, dataset)
        if ensemble is None:
            raise NotFound(
                "no case is scored under this reading",
                got=reading.value,
                remedy="score cases first: `atlasloop score`",
            )
        ranked = self._catalog.ranking(reading, ensemble, dataset)
        if organs:
            ranked = _ranked_by(ranked, frozenset(organs))
        top = ranked[: portion.of(len(ranked))]
        now = self._now()
        rows = [
            {
                "case_id": case.case_id,
                "dataset": case.dataset,
                "reading": reading.value,
                "ensemble": ensemble,
                "rank": case.rank,
                "attention_ml": case.attention_ml,
                "state": TaskState.OPEN.value,
                "created_at": now,
                "updated_at": now,
            }
            for case in top
        ]
        with self._catalog.transaction(write=True) as connection:
            ids = _insert_tasks(connection, rows)
            new = [case for case in top if case.case_id in ids]
            _insert_organs(connection, {ids[case.case_id]: case for case in new})
            note(
                connection,
                *(
                    AuditEntry(
                        at=now,
                        who=who,
                        action="queue",
                        case_id=case.case_id,
                        task_id=ids[case.case_id],
                        detail={"rank": case.rank},
                    )
                    for case in new
                ),
            )
        tasks = tuple(ids[case.case_id] for case in new)
        return OpenedTasks(created=len(new), already=len(top) - len(new), tasks=tasks)

    # Looking

    def task(self, task_id: int) -> Task:
        """One task.

        Raises:
            NotFound: there is none.
        """
        with self._catalog.transaction(write=False) as connection:
            return self._task(connection, task_id)

    def history(self, task_id: int) -> list[AuditEntry]:
        """What was done to a task, first to last."""
        with self._catalog.transaction(write=False) as connection:
            return task_history(connection, task_id)

    def page(self, wanted: Wanted, offset: int, limit: int) -> tuple[int, list[Task]]:
        """Number of tasks that are `wanted`, and `limit` of them from `offset` on, by rank."""
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

    def counts(self, wanted: Wanted) -> TaskCounts:
        """Tasks by state; `wanted.state` and `wanted.assignee` do not matter."""
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

    def held_by(self, who: str, case_id: str | None = None) -> Task | None:
        """The task that `who` holds now (on this case, where one is given), or None."""
        held = (_k.assignee == who) & IS_PENDING & (_k.lease_expires_at > self._now())
        if case_id is not None:
            held &= _k.case_id == case_id
        query = sa.select(t.revision_tasks).where(held).order_by(_k.rank, _k.id).limit(1)
        with self._catalog.transaction(write=False) as connection:
            row = connection.execute(query).mappings().one_or_none()
            return None if row is None else self._tasks(connection, [row])[0]

    # Leases

    def next(self, annotator: Annotator, wanted: Wanted = ANYTHING) -> Task | None:
        """Lease the wanted case of the best rank that nobody holds; with an organ, the one with
        most attention there.

        What the annotator held before is given back. If nothing else is left, it is kept.
        """
        return self.next_for([(annotator, wanted)])[0]

    def next_for(self, asks: Sequence[tuple[Annotator, Wanted]]) -> list[Task | None]:
        """`next` for several annotators in one transaction: many who ask at once cost little more
        than one.

        Args:
            asks: each annotator once.
        """
        now = self._now()
        expires = now + self._lease
        names = [annotator.name for annotator, _ in asks]
        with self._catalog.transaction(write=True) as connection:
            picked: dict[str, TaskRow] = {}
            for wish in _wishes(asks):
                picked |= pick(connection, wish, now, expires)
            entries = [_entry(now, name, "lease", row) for name, row in picked.items()]
            for annotator, wanted in asks:
                if annotator.name not in picked:
                    kept = self._kept(connection, annotator, wanted, now)
                    picked |= {} if kept is None else {annotator.name: kept}
            held = [row["id"] for row in picked.values()]
            given_back = give_back(connection, names, held, now)
            entries += [_entry(now, row["assignee"], "give back", row) for row in given_back]
            note(connection, *entries)
            tasks = dict(zip(picked, self._tasks(connection, list(picked.values())), strict=True))
        return [tasks.get(name) for name in names]

    def lease(self, task_id: int, annotator: Annotator) -> Task:
        """Take one task, or renew the lease on it.

        Raises:
            NotFound: there is no such task.
            Conflict: another annotator holds it, it is finished, or it waits for somebody else.
        """
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._held(connection, task_id, annotator, now)
            renewed = row["assignee"] == annotator.name
            changed = self._change(
                connection,
                task_id,
                now,
                assignee=annotator.name,
                lease_expires_at=now + self._lease,
            )
            if not renewed:  # a page renews every minute: that is no news
                note(connection, _entry(now, annotator.name, "lease", row))
            return self._tasks(connection, [changed])[0]

    def release(self, task_id: int, annotator: Annotator) -> None:
        """Give a task back; nothing happens if the annotator does not hold it.

        Raises:
            NotFound: there is no such task.
        """
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._locked(connection, task_id)
            if row["assignee"] == annotator.name and row["state"] in PENDING:
                self._change(connection, task_id, now, assignee=None, lease_expires_at=None)
                note(connection, _entry(now, annotator.name, "give back", row))

    # Judging

    def judge(
        self,
        task_id: int,
        annotator: Annotator,
        organ: str,
        verdict: Verdict,
        *,
        error_type: str | None = None,
        comment: str = "",
    ) -> Task:
        """Say of one organ whether its label is right, and if not, what is wrong (Fig. 5).

        Raises:
            NotFound: no such task, or it is not about this organ.
            InvalidInput: an unknown error type, or one for a label that is right.
            Conflict: as `lease`.
        """
        if error_type is not None:
            require_error_type(error_type)
            if verdict is Verdict.CONFIRMED:
                raise InvalidInput("a label that is right has no error type", got=error_type)
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._held(connection, task_id, annotator, now)
            known = connection.execute(
                sa.update(t.revision_task_organs)
                .where(_o.task_id == task_id, _o.organ == organ)
                .values(
                    verdict=verdict.value,
                    error_type=error_type,
                    note=comment,
                    decided_by=annotator.name,
                    decided_at=now,
                )
            ).rowcount
            if not known:
                raise NotFound("the task is not about this organ", case=row["case_id"], got=organ)
            changed = self._touch(connection, row, annotator, now)
            detail = {"organ": organ, "verdict": verdict.value, "error_type": error_type}
            note(connection, _entry(now, annotator.name, "judge", row, detail))
            return self._tasks(connection, [changed])[0]

    def confirm(self, task_id: int, annotator: Annotator, seconds: float) -> Task:
        """No revision needed; organs without a verdict are confirmed.

        Raises:
            NotFound: there is no such task.
            Conflict: as `lease`; also an organ that was said to need revision.
        """
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._held(connection, task_id, annotator, now)
            wrong = connection.scalars(
                sa.select(_o.organ)
                .where(_o.task_id == task_id, _o.verdict == Verdict.NEEDS_REVISION.value)
                .order_by(_o.organ)
            ).all()
            if wrong:
                raise Conflict(
                    "organs were said to need revision",
                    case=row["case_id"],
                    got=", ".join(wrong),
                    remedy="revise them, or change the verdict",
                )
            self._judge_rest(connection, task_id, annotator, now, Verdict.CONFIRMED)
            return self._finish(connection, row, annotator, TaskState.CONFIRMED, seconds)

    def revise(
        self, task_id: int, annotator: Annotator, seconds: float, labels: Mapping[str, str]
    ) -> Task:
        """The labels that were handed in are the revision.

        Args:
            labels: organ → id of its new label version; see `label_versions`.

        Raises:
            NotFound: there is no such task, or a version that is none of this case and organ.
            InvalidInput: no label at all.
            Conflict: as `lease`; also a version that another one has replaced.
        """
        if not labels:
            raise InvalidInput(
                "a revision without a label", remedy="hand in a label, or confirm the case"
            )
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._held(connection, task_id, annotator, now)
            for organ, version in labels.items():
                _require_newest(connection, row["case_id"], organ, version)
            self._judge_rest(
                connection, task_id, annotator, now, Verdict.NEEDS_REVISION, organs=tuple(labels)
            )
            return self._finish(
                connection, row, annotator, TaskState.REVISED, seconds, {"labels": dict(labels)}
            )

    def skip(self, task_id: int, annotator: Annotator, reason: str, seconds: float = 0.0) -> Task:
        """Leave the case as it is, for a reason.

        Raises:
            NotFound, Conflict: as `lease`.
            InvalidInput: no reason.
        """
        _require_text("skip", reason)
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._held(connection, task_id, annotator, now)
            detail = {"reason": reason}
            return self._finish(connection, row, annotator, TaskState.SKIPPED, seconds, detail)

    def ask_second_reader(
        self, task_id: int, annotator: Annotator, comment: str, seconds: float = 0.0
    ) -> Task:
        """Let somebody else look at the case.

        Raises:
            NotFound, Conflict: as `lease`.
        """
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._held(connection, task_id, annotator, now)
            self._note_work(connection, row, annotator, TaskState.SECOND_READING, seconds, now)
            changed = self._change(
                connection,
                task_id,
                now,
                state=TaskState.SECOND_READING.value,
                first_reader=annotator.name,
                assignee=None,
                lease_expires_at=None,
            )
            note(
                connection,
                _entry(now, annotator.name, "second reading", row, {"note": comment}),
            )
            return self._tasks(connection, [changed])[0]

    def reopen(self, task_id: int, who: str, reason: str) -> Task:
        """Put a finished task back into the queue; its verdicts stay to be seen.

        Raises:
            NotFound: there is no such task.
            InvalidInput: no reason.
            Conflict: it is not finished, or the case waits in a newer task.
        """
        _require_text("reopen", reason)
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._locked(connection, task_id)
            if row["state"] not in FINISHED:
                raise Conflict("the task is not finished", case=row["case_id"], got=row["state"])
            newer = connection.scalar(
                sa.select(_k.id).where(_k.case_id == row["case_id"], IS_PENDING)
            )
            if newer is not None:
                raise Conflict("the case waits already", case=row["case_id"], got=f"task {newer}")
            changed = self._change(
                connection,
                task_id,
                now,
                state=TaskState.OPEN.value,
                assignee=None,
                lease_expires_at=None,
                first_reader=None,
            )
            note(connection, _entry(now, who, "reopen", row, {"reason": reason}))
            return self._tasks(connection, [changed])[0]

    # How it is done

    def _kept(
        self, connection: Connection, annotator: Annotator, wanted: Wanted, now: datetime
    ) -> sa.RowMapping | None:
        """The case that the annotator holds, if it is a wanted one; its lease is renewed."""
        chosen = self._chosen(replace(wanted, state=TaskState.LEASED, assignee=annotator.name))
        query = sa.select(_k.id).where(chosen).order_by(_k.rank, _k.id).limit(1)
        task_id = connection.scalar(query)
        if task_id is None:
            return None
        return self._change(connection, task_id, now, lease_expires_at=now + self._lease)

    def _locked(self, connection: Connection, task_id: int) -> sa.RowMapping:
        query = sa.select(t.revision_tasks).where(_k.id == task_id).with_for_update()
        row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise NotFound("no such task", got=task_id)
        return row

    def _held(
        self, connection: Connection, task_id: int, annotator: Annotator, now: datetime
    ) -> sa.RowMapping:
        """The task, locked, if the annotator holds it or may take it now.

        A lease that ended while its annotator was drawing hurts nobody as long as nobody else took
        the case.
        """
        row = self._locked(connection, task_id)
        case = row["case_id"]
        if row["state"] in FINISHED:
            raise Conflict(
                "the task is finished",
                case=case,
                got=f"{row['state']} by {row['assignee']}",
                remedy="ask a reader to open it again",
            )
        live = row["lease_expires_at"] is not None and row["lease_expires_at"] > now
        if live and row["assignee"] != annotator.name:
            raise Conflict(
                "another annotator holds this case",
                case=case,
                got=row["assignee"],
                remedy="take the next case",
            )
        if row["state"] == TaskState.SECOND_READING.value:
            _require_second_reader(row, annotator)
        return row

    def _change(
        self, connection: Connection, task_id: int, now: datetime, **values: Any
    ) -> sa.RowMapping:
        query = (
            sa.update(t.revision_tasks)
            .where(_k.id == task_id)
            .values(updated_at=now, **values)
            .returning(*t.revision_tasks.c)
        )
        return connection.execute(query).mappings().one()

    def _touch(
        self, connection: Connection, row: sa.RowMapping, annotator: Annotator, now: datetime
    ) -> sa.RowMapping:
        """Working on a case renews the lease."""
        expires = now + self._lease
        return self._change(
            connection, row["id"], now, assignee=annotator.name, lease_expires_at=expires
        )

    def _judge_rest(
        self,
        connection: Connection,
        task_id: int,
        annotator: Annotator,
        now: datetime,
        verdict: Verdict,
        organs: Sequence[str] | None = None,
    ) -> None:
        """`verdict` for the organs (all: None) that have none."""
        without = (_o.task_id == task_id) & _o.verdict.is_(None)
        if organs is not None:
            without &= _o.organ.in_(organs)
        connection.execute(
            sa.update(t.revision_task_organs)
            .where(without)
            .values(verdict=verdict.value, decided_by=annotator.name, decided_at=now)
        )

    def _finish(
        self,
        connection: Connection,
        row: sa.RowMapping,
        annotator: Annotator,
        state: TaskState,
        seconds: float,
        detail: Mapping[str, Any] | None = None,
    ) -> Task:
        now = self._now()
        self._note_work(connection, row, annotator, state, seconds, now)
        changed = self._change(
            connection,
            row["id"],
            now,
            state=state.value,
            assignee=annotator.name,
            lease_expires_at=None,
        )
        spent = {"seconds_spent": seconds, **(detail or {})}
        note(connection, _entry(now, annotator.name, state.value, row, spent))
        return self._tasks(connection, [changed])[0]

    def _note_work(
        self,
        connection: Connection,
        row: sa.RowMapping,
        annotator: Annotator,
        outcome: TaskState,
        seconds: float,
        now: datetime,
    ) -> None:
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InvalidInput("time spent is no time", expected="seconds, >= 0", got=seconds)
        connection.execute(
            sa.insert(t.revision_work).values(
                task_id=row["id"],
                annotator=annotator.name,
                outcome=outcome.value,
                seconds=seconds,
                finished_at=now,
            )
        )

    def _state_now(self) -> sa.ColumnElement[str]:
        """The state as people see it: a lease that has not ended makes a task "leased"."""
        leased = IS_PENDING & (_k.lease_expires_at > self._now())
        return sa.case((leased, TaskState.LEASED.value), else_=_k.state)

    def _chosen(self, wanted: Wanted) -> sa.ColumnElement[bool]:
        chosen = sa.true() if wanted.dataset is None else _k.dataset == wanted.dataset
        if wanted.organ is not None:
            about = sa.select(_o.task_id).where(_o.organ == wanted.organ)
            chosen = chosen & _k.id.in_(about)
        if wanted.state is not None:
            chosen = chosen & (self._state_now() == wanted.state.value)
        if wanted.assignee is not None:
            chosen = chosen & (_k.assignee == wanted.assignee)
        return chosen

    def _task(self, connection: Connection, task_id: int) -> Task:
        query = sa.select(t.revision_tasks).where(_k.id == task_id)
        rows = connection.execute(query).mappings().all()
        if not rows:
            raise NotFound("no such task", got=task_id)
        return self._tasks(connection, rows)[0]

    def _tasks(self, connection: Connection, rows: Sequence[TaskRow]) -> list[Task]:
        """Rows of the table with their organs, as values."""
        organs: dict[int, list[TaskOrgan]] = {row["id"]: [] for row in rows}
        query = connection.execute(_ORGANS_OF, {"tasks": list(organs)})
        for task_id, organ, attention_ml, verdict, error_type, text in query:
            organs[task_id].append(
                TaskOrgan(
                    organ=organ,
                    attention_ml=attention_ml,
                    verdict=verdict,
                    error_type=error_type,
                    note=text,
                )
            )
        now = self._now()
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
        attention_ml=row["attention_ml"],
        state=TaskState.LEASED if live else row["state"],
        assignee=row["assignee"] if live or not pending else None,
        lease_expires_at=expires if live else None,
        second_reader=row["first_reader"] is not None,
        organs=organs,
        updated_at=row["updated_at"],
    )


def _entry(
    at: datetime,
    who: str,
    action: str,
    row: TaskRow,
    detail: Mapping[str, Any] | None = None,
) -> AuditEntry:
    return AuditEntry(
        at=at,
        who=who,
        action=action,
        case_id=row["case_id"],
        task_id=row["id"],
        detail=dict(detail or {}),
    )


def _wishes(asks: Sequence[tuple[Annotator, Wanted]]) -> list[Wish]:
    """Those who want the same, together; a second reader by himself, who may not have every case
    that others may."""
    together: dict[tuple[str | None, str | None], list[str]] = {}
    alone = []
    for annotator, wanted in asks:
        if annotator.second_reader:
            alone.append(Wish((annotator.name,), wanted.dataset, wanted.organ, True))
        else:
            together.setdefault((wanted.dataset, wanted.organ), []).append(annotator.name)
    return alone + [
        Wish(tuple(names), dataset, organ, False) for (dataset, organ), names in together.items()
    ]


def _require_second_reader(row: sa.RowMapping, annotator: Annotator) -> None:
    if row["first_reader"] == annotator.name:
        raise Conflict(
            "the case waits for a second reader",
            case=row["case_id"],
            expected=f"somebody other than {row['first_reader']}",
        )
    if not annotator.second_reader:
        raise Conflict(
            "the case waits for a second reader",
            case=row["case_id"],
            expected="somebody with the role reader or manager",
        )


def _require_text(what: str, text: str) -> None:
    if not text.strip():
        raise InvalidInput(f"to {what} a case needs a reason")


def _require_newest(connection: Connection, case_id: str, organ: str, version: str) -> None:
    """Refuse a label version that is not the newest revision of that organ of that case."""
    labels = t.labels.c
    query = (
        sa.select(labels.id)
        .where(
            labels.case_id == case_id,
            labels.organ == organ,
            labels.source == LabelSource.REVISED.value,
        )
        .order_by(labels.created_at.desc(), labels.sha256.desc())
    )
    revised = [str(number) for number in connection.scalars(query)]
    if version.startswith("conflict-") or (version in revised and version != revised[0]):
        raise Conflict(
            f"the {organ} was changed by somebody else meanwhile",
            case=case_id,
            expected=f"version {revised[0] if revised else 'none'}",
            got=f"version {version}",
            remedy="look at both versions, and hand in one that is made from the newer",
        )
    if version not in revised:
        raise NotFound(f"no such revision of the {organ}", case=case_id, got=version)


def _ranked_by(ranked: Sequence[RankedCase], organs: Collection[str]) -> list[RankedCase]:
    """The priority list as if only `organs` counted."""
    return rank(
        CaseSizes(
            case.case_id,
            case.dataset,
            tuple(organ for organ in case.organs if organ.organ in organs),
        )
        for case in ranked
    )


def _insert_tasks(connection: Connection, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Insert those whose case has no task yet; case id → id of its new task."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    ids: dict[str, int] = {}
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        chunk = rows[start : start + ROWS_PER_STATEMENT]
        query = dialect.insert(t.revision_tasks).values(chunk).on_conflict_do_nothing()
        new = connection.execute(query.returning(_k.case_id, _k.id))
        ids |= {row.case_id: row.id for row in new}
    return ids


def _insert_organs(connection: Connection, tasks: Mapping[int, RankedCase]) -> None:
    rows = [
        {"task_id": task_id, "organ": organ.organ, "attention_ml": organ.attention_ml, "note": ""}
        for task_id, case in tasks.items()
        for organ in case.organs
    ]
    if rows:
        connection.execute(sa.insert(t.revision_task_organs), rows)
