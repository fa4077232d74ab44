"""The revision queue: which case comes next, who holds it, and how it was decided (§3.2 ⑤).

Every call is one transaction, which includes its entry in the audit log. A case is held by a lease
that expires by itself. Two annotators who ask at once get different cases: on PostgreSQL rows that
another transaction has picked are skipped (``FOR UPDATE SKIP LOCKED``), on
SQLite transactions that write follow one another (``BEGIN IMMEDIATE``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import Catalog, now
from atlas_core.catalog import tables as t
from atlas_core.errors import Conflict, InvalidInput, NotFound
from atlas_core.records import LabelSource, RankBy, Reading
from atlas_core.review.audit_log import note
from atlas_core.review.clock import Clock
from atlas_core.review.error_taxonomy import require_error_type
from atlas_core.review.filling import Portion, PriorityListSource, insert_tasks, ranked_by_organs
from atlas_core.review.leasing import IS_PENDING, LeaseRequest, give_back, pick
from atlas_core.review.records import (
    FINISHED,
    PENDING,
    PROPOSAL_PREFIX,
    Annotator,
    OpenedTasks,
    Task,
    TaskState,
    Verdict,
)
from atlas_core.review.rows import TaskRow, audit_entry
from atlas_core.review.views import ANY_TASK, RevisionViews, TaskFilter

DEFAULT_LEASE: Final = timedelta(minutes=10)
"""A page renews its lease every minute, so a crash blocks its case for a short time only."""

_k = t.revision_tasks.c
_o = t.revision_task_organs.c


class OpenElsewhere(Conflict):
    """Another window of the same annotator works on the task."""

    def __init__(self, case_id: str) -> None:
        super().__init__(
            "you work on this case in another window, or on another computer",
            case=case_id,
            remedy="go on there, or take over here: what was drawn there is kept",
        )


class RevisionQueue(RevisionViews):
    """The tasks in a catalog. Safe to share between threads; any number of processes may share it.

    Args:
        lease: how long a case is held without a sign of its annotator.
        clock: the current time, in UTC.
    """

    def __init__(
        self, catalog: Catalog, *, lease: timedelta = DEFAULT_LEASE, clock: Clock = now
    ) -> None:
        super().__init__(catalog, clock=clock)
        self._lease = lease

    # Filling the queue

    def open_tasks(
        self,
        portion: Portion,
        who: str,
        *,
        reading: Reading = Reading.PAPER,
        by: RankBy = RankBy.DISAGREEMENT,
        ensemble: str | None = None,
        dataset: str | None = None,
        organs: Collection[str] = (),
        without: Collection[str] = (),
    ) -> OpenedTasks:
        """Open a task for each case at the top of the priority list that has none.

        A case that was queued from this ensemble's list before is left as it is, whatever its
        outcome, and so is one that is still pending because of another ensemble.

        Args:
            portion: how much of the list.
            who: the user who asks.
            by: what the list is sorted by.
            ensemble: that ranks the cases; None: the one that scored last.
            dataset: only its cases; None: all.
            organs: only these count in the list and appear in the tasks; empty: all.
            without: cases that are passed over; the next ones in the list take their places.

        Raises:
            NotFound: nothing is scored under this reading.
            Conflict: some scores lack what the list is sorted by.
        """
        ensemble = ensemble or self._catalog.latest_ensemble(reading, dataset)
        if ensemble is None:
            raise NotFound(
                "no case is scored under this reading",
                got=reading.value,
                remedy="score cases first: `atlasloop score`",
            )
        ranked = self._catalog.ranking(reading, ensemble, dataset, by)
        if organs:
            ranked = ranked_by_organs(ranked, frozenset(organs), by)
        left = [case for case in ranked if case.case_id not in without]
        top = left[: portion.of(len(ranked))]
        source = PriorityListSource(reading, ensemble, by)
        with self._catalog.transaction(write=True) as connection:
            return insert_tasks(connection, top, source, who, self._now())

    # Leases

    def next(self, annotator: Annotator, wanted: TaskFilter = ANY_TASK) -> Task | None:
        """Lease the free case of the best rank that matches; with an organ, the one whose place
        that organ drives most.

        What the annotator held before is given back, or kept if no other case is left.
        """
        return self.next_for([(annotator, wanted)])[0]

    def next_for(self, asks: Sequence[tuple[Annotator, TaskFilter]]) -> list[Task | None]:
        """`next` for several annotators in one transaction, which costs little more than for one.

        Args:
            asks: each annotator at most once.
        """
        now = self._now()
        expires = now + self._lease
        names = [annotator.name for annotator, _ in asks]
        with self._catalog.transaction(write=True) as connection:
            picked: dict[str, TaskRow] = {}
            for request in _lease_requests(asks):
                picked |= pick(connection, request, now, expires)
            entries = [audit_entry(now, name, "lease", row) for name, row in picked.items()]
            for annotator, wanted in asks:
                if annotator.name not in picked:
                    kept = self._kept(connection, annotator, wanted, now)
                    picked |= {} if kept is None else {annotator.name: kept}
            held = [row["id"] for row in picked.values()]
            given_back = give_back(connection, names, held, now)
            entries += [audit_entry(now, row["assignee"], "give back", row) for row in given_back]
            note(connection, *entries)
            tasks = dict(zip(picked, self._tasks(connection, list(picked.values())), strict=True))
        return [tasks.get(name) for name in names]

    def resume(self, annotator: Annotator, wanted: TaskFilter = ANY_TASK) -> Task | None:
        """The matching task that the annotator holds, or held until its lease ran out and that
        nobody has taken since, with its lease renewed; None without one."""
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._kept(connection, annotator, wanted, now)
            return None if row is None else self._tasks(connection, [row])[0]

    def lease(
        self,
        task_id: int,
        annotator: Annotator,
        page: str | None = None,
        *,
        take_over: bool = False,
    ) -> Task:
        """Take one task, or renew the lease on it, which never gets shorter by that.

        Args:
            page: the window of the annotator's browser that asks; None: a program that has none.
            take_over: also if another window of theirs works on it.

        Raises:
            NotFound: there is no such task.
            OpenElsewhere: another window of the annotator works on it.
            Conflict: another annotator holds it, it is finished, or it waits for a second reader.
        """
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._held(connection, task_id, annotator, now)
            renewed = row["assignee"] == annotator.name
            working = row["page"] if renewed else None
            live = row["lease_expires_at"] is not None and row["lease_expires_at"] > now
            if live and not take_over and page and working and page != working:
                raise OpenElsewhere(row["case_id"])
            changed = self._change(
                connection,
                task_id,
                now,
                assignee=annotator.name,
                lease_expires_at=self._expiry(row, annotator, now),
                page=page or working,
            )
            if not renewed:  # a page renews every minute: not worth a log entry
                note(connection, audit_entry(now, annotator.name, "lease", row))
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
                note(connection, audit_entry(now, annotator.name, "give back", row))

    def leave(self, task_id: int, annotator: Annotator, page: str) -> None:
        """A window of the annotator is closed: the lease stays, and any other one may go on.
        Nothing happens if this one does not work on the task.

        Raises:
            NotFound: there is no such task.
        """
        with self._catalog.transaction(write=True) as connection:
            row = self._locked(connection, task_id)
            if row["assignee"] == annotator.name and row["page"] == page:
                self._change(connection, task_id, row["updated_at"], page=None)

    # Judging

    def judge(
        self,
        task_id: int,
        annotator: Annotator,
        organ: str,
        verdict: Verdict | None,
        *,
        error_type: str | None = None,
        comment: str = "",
    ) -> Task:
        """Record whether the label of one organ is right, and if not, what is wrong (Fig. 5); None
        takes a verdict back.

        Raises:
            NotFound: no such task, or it is not about this organ.
            InvalidInput: an unknown error type, or one for a label that is not said to be wrong.
            Conflict: as `lease`.
        """
        if error_type is not None:
            require_error_type(error_type)
            if verdict is not Verdict.NEEDS_REVISION:
                raise InvalidInput("a label that is right has no error type", got=error_type)
        said = None if verdict is None else verdict.value
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._held(connection, task_id, annotator, now)
            known = connection.execute(
                sa.update(t.revision_task_organs)
                .where(_o.task_id == task_id, _o.organ == organ)
                .values(
                    verdict=said,
                    error_type=error_type,
                    note=comment,
                    decided_by=annotator.name,
                    decided_at=now,
                )
            ).rowcount
            if not known:
                raise NotFound("the task is not about this organ", case=row["case_id"], got=organ)
            changed = self._touch(connection, row, annotator, now)
            detail = {"organ": organ, "verdict": said, "error_type": error_type}
            note(connection, audit_entry(now, annotator.name, "judge", row, detail))
            return self._tasks(connection, [changed])[0]

    def confirm(
        self,
        task_id: int,
        annotator: Annotator,
        seconds: float,
        visited: Collection[str] | None = None,
    ) -> Task:
        """Finish a task that needs no (further) revision.

        Where a label was handed in for the task, the case did need revision and ends as revised.

        Args:
            visited: organs that were looked at: those of them without a verdict are confirmed, all
                others stay unjudged; None: every organ.

        Raises:
            NotFound: there is no such task.
            InvalidInput: no organ was looked at, judged or revised.
            Conflict: as `lease`; also an organ that was judged to need revision and got none.
        """
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._held(connection, task_id, annotator, now)
            revised = _handed_in(connection, row, annotator)
            wrong = connection.scalars(
                sa.select(_o.organ)
                .where(
                    _o.task_id == task_id,
                    _o.verdict == Verdict.NEEDS_REVISION.value,
                    _o.organ.not_in(revised),
                )
                .order_by(_o.organ)
            ).all()
            if wrong:
                raise Conflict(
                    "organs were said to need revision",
                    case=row["case_id"],
                    got=", ".join(wrong),
                    remedy="revise them, or change the verdict",
                )
            self._judge_revised(connection, task_id, annotator, now, revised)
            looked_at = sa.true() if visited is None else _o.organ.in_(visited)
            without = _o.verdict.is_(None) & looked_at
            self._judge_where(connection, task_id, annotator, now, Verdict.CONFIRMED, without)
            task = self._finish_by(connection, row, annotator, seconds, revised)
            if len(task.without_verdict) == len(task.organs) and task.organs:
                raise InvalidInput(
                    "no organ was looked at",
                    case=task.case_id,
                    remedy="look at the organs that are right and name them in `visited`, or skip "
                    "the case",
                )
            return task

    def revise(
        self, task_id: int, annotator: Annotator, seconds: float, labels: Mapping[str, str]
    ) -> Task:
        """Finish a task with the labels that were handed in as its revision.

        Args:
            labels: organ → id of its new label version; see `label_versions`.

        Raises:
            NotFound: there is no such task, or no such version of this case and organ.
            InvalidInput: no label at all.
            Conflict: as `lease`; also a version that is not the newest revision.
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
            revised = {**_handed_in(connection, row, annotator), **labels}
            self._judge_revised(connection, task_id, annotator, now, revised)
            return self._finish_by(connection, row, annotator, seconds, revised)

    def skip(self, task_id: int, annotator: Annotator, reason: str, seconds: float = 0.0) -> Task:
        """Finish a task without a judgement, for a reason.

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
        """Pass the case on to a second reader.

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
                audit_entry(now, annotator.name, "second reading", row, {"note": comment}),
            )
            return self._tasks(connection, [changed])[0]

    def take_back(self, task_id: int, annotator: Annotator) -> Task:
        """Undo the end of a task, for whoever ended it, who holds it again; verdicts and labels
        stay, to be changed.

        Raises:
            NotFound: there is no such task.
            Conflict: it is not finished, somebody else ended it, the case waits in a newer task, or
                its labels were assembled since.
        """
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._locked(connection, task_id)
            _require_finished(connection, row)
            if row["assignee"] != annotator.name:
                raise Conflict(
                    "somebody else has ended this task",
                    case=row["case_id"],
                    got=row["assignee"],
                    remedy="ask them, or a reader to open it again",
                )
            used = t.assemblies.c
            query = sa.select(sa.func.max(used.created_at)).where(used.case_id == row["case_id"])
            assembled = connection.scalar(query)
            if assembled is not None and assembled > row["updated_at"]:
                raise Conflict(
                    "the labels of this case were assembled since",
                    case=row["case_id"],
                    got=f"assembled {assembled:%Y-%m-%d %H:%M} UTC",
                    remedy="ask a reader to open it again",
                )
            pending = TaskState.OPEN if row["first_reader"] is None else TaskState.SECOND_READING
            changed = self._change(
                connection,
                task_id,
                now,
                state=pending.value,
                lease_expires_at=now + self._lease,
                page=None,
            )
            note(connection, audit_entry(now, annotator.name, "take back", row))
            return self._tasks(connection, [changed])[0]

    def reopen(self, task_id: int, who: str, reason: str) -> Task:
        """Put a finished task back into the queue; its verdicts stay visible.

        Raises:
            NotFound: there is no such task.
            InvalidInput: no reason.
            Conflict: it is not finished, or the case waits in a newer task.
        """
        _require_text("reopen", reason)
        now = self._now()
        with self._catalog.transaction(write=True) as connection:
            row = self._locked(connection, task_id)
            _require_finished(connection, row)
            changed = self._change(
                connection,
                task_id,
                now,
                state=TaskState.OPEN.value,
                assignee=None,
                lease_expires_at=None,
                first_reader=None,
            )
            note(connection, audit_entry(now, who, "reopen", row, {"reason": reason}))
            return self._tasks(connection, [changed])[0]

    # Internals

    def _kept(
        self,
        connection: Connection,
        annotator: Annotator,
        wanted: TaskFilter,
        now: datetime,
    ) -> sa.RowMapping | None:
        """The task that the annotator holds, if it matches; its lease is renewed."""
        chosen = IS_PENDING & self._chosen(replace(wanted, state=None, assignee=annotator.name))
        query = sa.select(t.revision_tasks).where(chosen).order_by(_k.rank, _k.id).limit(1)
        row = connection.execute(query.with_for_update()).mappings().one_or_none()
        if row is None:
            return None
        expires = self._expiry(row, annotator, now)
        return self._change(connection, row["id"], now, lease_expires_at=expires)

    def _expiry(self, row: sa.RowMapping, annotator: Annotator, now: datetime) -> datetime:
        """When the lease ends that is given or renewed now: a page does not cut short the longer
        one of a program that its annotator also works with."""
        expires = now + self._lease
        mine = row["lease_expires_at"] if row["assignee"] == annotator.name else None
        return expires if mine is None else max(expires, mine)

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

        A lease that expired while its annotator was drawing does no harm unless somebody else has
        taken the case.
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
        """Renew the lease, as any work on a case does."""
        expires = self._expiry(row, annotator, now)
        return self._change(
            connection, row["id"], now, assignee=annotator.name, lease_expires_at=expires
        )

    def _judge_revised(
        self,
        connection: Connection,
        task_id: int,
        annotator: Annotator,
        now: datetime,
        organs: Collection[str],
    ) -> None:
        """Organs for which a label was handed in needed revision, whatever was judged before."""
        verdict = Verdict.NEEDS_REVISION
        concerned = _o.organ.in_(organs) & _o.verdict.is_distinct_from(verdict.value)
        self._judge_where(connection, task_id, annotator, now, verdict, concerned)

    def _judge_where(
        self,
        connection: Connection,
        task_id: int,
        annotator: Annotator,
        now: datetime,
        verdict: Verdict,
        concerned: sa.ColumnElement[bool],
    ) -> None:
        connection.execute(
            sa.update(t.revision_task_organs)
            .where(_o.task_id == task_id, concerned)
            .values(verdict=verdict.value, decided_by=annotator.name, decided_at=now)
        )

    def _finish_by(
        self,
        connection: Connection,
        row: sa.RowMapping,
        annotator: Annotator,
        seconds: float,
        revised: Mapping[str, str],
    ) -> Task:
        """Finish a task whose case was judged: as revised, if any organ was."""
        if not revised:
            return self._finish(connection, row, annotator, TaskState.CONFIRMED, seconds)
        detail = {"labels": dict(revised)}
        return self._finish(connection, row, annotator, TaskState.REVISED, seconds, detail)

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
        note(connection, audit_entry(now, annotator.name, state.value, row, spent))
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


def _lease_requests(asks: Sequence[tuple[Annotator, TaskFilter]]) -> list[LeaseRequest]:
    """One request for all annotators who ask for the same; a second reader gets a request of their
    own, as they may not take every case that others may."""
    groups: dict[tuple[str | None, str | None], list[str]] = {}
    single = []
    for annotator, wanted in asks:
        if annotator.second_reader:
            single.append(LeaseRequest((annotator.name,), wanted.dataset, wanted.organ, True))
        else:
            groups.setdefault((wanted.dataset, wanted.organ), []).append(annotator.name)
    return single + [
        LeaseRequest(tuple(names), dataset, organ, False)
        for (dataset, organ), names in groups.items()
    ]


def _require_finished(connection: Connection, row: sa.RowMapping) -> None:
    if row["state"] not in FINISHED:
        raise Conflict("the task is not finished", case=row["case_id"], got=row["state"])
    newer = connection.scalar(sa.select(_k.id).where(_k.case_id == row["case_id"], IS_PENDING))
    if newer is not None:
        raise Conflict("the case waits already", case=row["case_id"], got=f"task {newer}")


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


def _handed_in(connection: Connection, task: sa.RowMapping, annotator: Annotator) -> dict[str, str]:
    """Organ → newest label that was handed in for a task: under its id by whoever held it or, by a
    program of the annotator that knows no tasks, under none since the task was opened."""
    s = t.label_submissions.c
    of_task = (s.task_id == task["id"]) | (
        s.task_id.is_(None) & (s.author == annotator.name) & (s.created_at >= task["created_at"])
    )
    query = (
        sa.select(s.organ, s.label_id)
        .where(s.case_id == task["case_id"], s.label_id.is_not(None), of_task)
        .order_by(s.created_at, s.id)
    )
    return {row.organ: str(row.label_id) for row in connection.execute(query)}


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
    if version.startswith(PROPOSAL_PREFIX) or (version in revised and version != revised[0]):
        raise Conflict(
            f"the {organ} was changed by somebody else meanwhile",
            case=case_id,
            expected=f"version {revised[0] if revised else 'none'}",
            got=f"version {version}",
            remedy="look at both versions, and hand in one that is made from the newer",
        )
    if version not in revised:
        raise NotFound(f"no such revision of the {organ}", case=case_id, got=version)
