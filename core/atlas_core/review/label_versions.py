"""Label versions: every label of an organ, from each source, and the labels annotators submit.

A version never changes. A label that is handed in names the version it was made from, its base. It
comes into force if that is the latest version, and if its author holds the case or is a reader. If
not, no work is lost: it stays a proposal, which assembly does not see, until somebody who may put a
label into force has compared the two and accepts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import Catalog, now
from atlas_core.catalog import tables as t
from atlas_core.errors import Conflict, InvalidInput, LimitExceeded, NotFound
from atlas_core.records import LabelSource
from atlas_core.review.audit_log import note
from atlas_core.review.clock import Clock
from atlas_core.review.label_rows import (
    accept_proposal,
    hand_in_entry,
    insert_label,
    insert_submission,
    of_proposal,
    version_of,
    versions_of,
)
from atlas_core.review.leasing import held_task
from atlas_core.review.records import (
    PROPOSAL_PREFIX,
    Annotator,
    AuditEntry,
    LabelVersion,
    Submission,
)

NO_BASE: Final = "none"
"""Base of a label of an organ that had none."""

_l = t.labels.c
_s = t.label_submissions.c


class KeptAsProposal(Conflict):
    """A label was handed in that must not come into force. It is kept as a proposal.

    Attributes:
        submitted: the proposal.
    """

    def __init__(self, submitted: LabelVersion, what: str, **details: Any) -> None:
        self.submitted = submitted
        super().__init__(what, case=submitted.case_id, **details)


class NotHeld(KeptAsProposal):
    """Its author neither holds the case nor is a reader."""

    def __init__(self, submitted: LabelVersion) -> None:
        super().__init__(
            submitted,
            f"the label of the {submitted.organ} is kept, as {submitted.id}, and not in force",
            expected="somebody who holds the case, or a reader",
            got=submitted.author,
            remedy="take the case and accept it, or ask its holder, a reader or a manager to",
        )


class StaleBase(KeptAsProposal):
    """It was made from a version that is no longer the latest. Both are kept.

    Attributes:
        current: the latest version; None if the organ has none.
    """

    def __init__(self, current: LabelVersion | None, submitted: LabelVersion) -> None:
        self.current = current
        super().__init__(
            submitted,
            f"the {submitted.organ} was changed by somebody else meanwhile; both labels are kept",
            expected=f"base {current.id if current else NO_BASE}",
            got=f"base {submitted.base or NO_BASE}",
            remedy="compare the two, and hand in one made from the latest version, or accept yours",
        )


MAX_PROPOSALS: Final = 500
"""Of one author that wait for somebody to accept them: anybody may hand in for any case, and every
proposal is a file that nobody has asked for."""


class LabelVersions:
    """The label versions in a catalog. Safe to share between threads.

    Args:
        max_proposals: of one author that nobody has accepted, at most.
    """

    def __init__(
        self, catalog: Catalog, *, max_proposals: int = MAX_PROPOSALS, clock: Clock = now
    ) -> None:
        self._catalog = catalog
        self._max_proposals = max_proposals
        self._now = clock

    def versions(
        self, case_id: str, organ: str | None = None, source: LabelSource | None = None
    ) -> list[LabelVersion]:
        """Every version of a case (of one organ, of one source), proposals included, oldest
        first."""
        with self._catalog.transaction(write=False) as connection:
            found = versions_of(connection, case_id)
        return [
            version
            for version in found
            if organ in (None, version.organ) and source in (None, version.source)
        ]

    def authored_cases(self) -> list[str]:
        """Ids of the cases for which somebody has handed in a label, sorted."""
        by_people = sa.union(
            sa.select(_l.case_id).where(_l.annotator.is_not(None)), sa.select(_s.case_id)
        )
        with self._catalog.transaction(write=False) as connection:
            return sorted(connection.scalars(by_people))

    def in_force(self, case_id: str) -> dict[str, LabelVersion]:
        """The version that assembly takes, of every organ that has one."""
        return {version.organ: version for version in self.versions(case_id) if version.in_force}

    def latest(self, case_id: str) -> dict[str, LabelVersion]:
        """The version that a new label is to be made from, of every organ that has one: the newest
        revision, also where an original label is in force; without any, the version in force."""
        by_organ: dict[str, list[LabelVersion]] = {}
        for version in self.versions(case_id):
            by_organ.setdefault(version.organ, []).append(version)
        found = {organ: _latest(versions) for organ, versions in by_organ.items()}
        return {organ: version for organ, version in found.items() if version is not None}

    def version(self, case_id: str, version_id: str) -> LabelVersion:
        """One version.

        Raises:
            NotFound: this case has no such version.
        """
        with self._catalog.transaction(write=False) as connection:
            return version_of(connection, case_id, version_id)

    def submit(self, submission: Submission) -> LabelVersion:
        """Put a label on record: as the revised label of its organ, or as a proposal.

        The same mask as the newest revision (from a client that missed the answer and sends again)
        is no new version: that revision is returned. So is a proposal that its author repeats.

        Raises:
            NotFound: no such case.
            InvalidInput: the base is no version of this case and organ.
            NotHeld: the author neither holds the case nor is a reader. The proposal is on record.
            StaleBase: the base is not the latest version. The proposal is on record.
            LimitExceeded: too many proposals of this author wait already. Nothing is on record.
        """
        author = submission.author
        with self._catalog.transaction(write=True) as connection:
            _lock_case(connection, submission.case_id)
            known = versions_of(connection, submission.case_id)
            known = [version for version in known if version.organ == submission.organ]
            latest = _latest(known)
            base_id = _base_id(submission, known)
            if (
                latest is not None
                and latest.source is LabelSource.REVISED
                and latest.sha256 == submission.sha256
            ):
                return latest
            held = held_task(connection, submission.case_id, author.name)
            may = held is not None or author.second_reader
            fresh = submission.base == (latest.id if latest else NO_BASE)
            submitted = None if may and fresh else _repeated(known, submission)
            if submitted is None:
                now = _after(known, self._now())
                label_id = None
                if may and fresh:
                    label_id = insert_label(connection, submission, author.name, now)
                else:
                    self._require_room(connection, submission)
                # Whose label it is decides how the task ends: only its holder's counts.
                task_id = held if held == submission.task_id else None
                number = insert_submission(
                    connection, replace(submission, task_id=task_id), now, base_id, label_id
                )
                identity = f"{PROPOSAL_PREFIX}{number}" if label_id is None else str(label_id)
                note(connection, hand_in_entry(submission, now, identity))
                submitted = version_of(connection, submission.case_id, identity)
        if not may:
            raise NotHeld(submitted)
        if not fresh:
            raise StaleBase(latest, submitted)
        return submitted

    def proposals(self, offset: int, limit: int) -> tuple[int, list[LabelVersion]]:
        """Number of proposals that nobody has accepted, and `limit` of them from `offset` on,
        newest first."""
        waiting = sa.select(t.label_submissions).where(_s.label_id.is_(None))
        page = waiting.order_by(_s.id.desc()).offset(offset).limit(limit)
        with self._catalog.transaction(write=False) as connection:
            total = connection.scalar(sa.select(sa.func.count()).select_from(waiting.subquery()))
            rows = connection.execute(page).mappings()
            return total or 0, [of_proposal(row) for row in rows]

    def _require_room(self, connection: Connection, submission: Submission) -> None:
        """Room for one more proposal of its author."""
        name = submission.author.name
        own = sa.select(sa.func.count()).where(_s.label_id.is_(None), _s.author == name)
        waiting = connection.scalar(own) or 0
        if waiting >= self._max_proposals:
            raise LimitExceeded(
                f"the label of the {submission.organ} is not kept: too many proposals of {name} "
                "wait to be accepted",
                case=submission.case_id,
                expected=f"{self._max_proposals} at most",
                got=waiting + 1,
                remedy="take the case and hand in from its latest version, or ask a reader or a "
                "manager to accept what waits",
            )

    def accept(self, case_id: str, proposal_id: str, who: Annotator, over: str) -> LabelVersion:
        """Put a proposal into force: it becomes the newest revision, by its own author.

        Args:
            over: id of the latest version of the organ, as `who` has seen it, or `NO_BASE`.

        Raises:
            NotFound: this case has no such proposal.
            Conflict: `who` neither holds the case nor is a reader; or there is a later version
                than `over`. Nothing changes.
        """
        with self._catalog.transaction(write=True) as connection:
            _lock_case(connection, case_id)
            proposal = version_of(connection, case_id, proposal_id)
            if not proposal.is_proposal:
                raise NotFound("this label is no proposal", case=case_id, got=proposal_id)
            if held_task(connection, case_id, who.name) is None and not who.second_reader:
                raise Conflict(
                    "a proposal is accepted by somebody who holds the case, or by a reader",
                    case=case_id,
                    got=who.name,
                    remedy="take the case first",
                )
            known = versions_of(connection, case_id)
            known = [version for version in known if version.organ == proposal.organ]
            latest = _latest(known)
            current = latest.id if latest else NO_BASE
            if over != current:
                raise Conflict(
                    f"the {proposal.organ} was changed by somebody else meanwhile",
                    case=case_id,
                    expected=f"version {current}",
                    got=f"version {over}",
                    remedy="compare the proposal with the latest version",
                )
            label_id = accept_proposal(connection, proposal, _after(known, self._now()))
            detail = {"organ": proposal.organ, "proposal": proposal.id, "version": str(label_id)}
            entry = AuditEntry(
                at=self._now(), who=who.name, action="accept", case_id=case_id, detail=detail
            )
            note(connection, entry)
            return version_of(connection, case_id, str(label_id))


def _repeated(known: Sequence[LabelVersion], submission: Submission) -> LabelVersion | None:
    """The proposal that this very mask of this author is already."""
    return next(
        (
            version
            for version in known
            if version.is_proposal
            and (version.sha256, version.author) == (submission.sha256, submission.author.name)
        ),
        None,
    )


def _after(known: Sequence[LabelVersion], now: datetime) -> datetime:
    """An instant later than all versions: the newest counts."""
    return max([now, *(version.created_at + timedelta(microseconds=1) for version in known)])


def _latest(versions: list[LabelVersion]) -> LabelVersion | None:
    """The newest revision among the versions of one organ, oldest first; without any, the version
    in force."""
    revised = [v for v in versions if v.source is LabelSource.REVISED and not v.is_proposal]
    return revised[-1] if revised else next((v for v in versions if v.in_force), None)


def _lock_case(connection: Connection, case_id: str) -> None:
    """Let submissions for one case follow one another."""
    query = sa.select(t.cases.c.id).where(t.cases.c.id == case_id).with_for_update()
    if connection.scalar(query) is None:
        raise NotFound("no such case in the catalog", case=case_id)


def _base_id(submission: Submission, known: list[LabelVersion]) -> int | None:
    if submission.base == NO_BASE:
        return None
    if submission.base not in {version.id for version in known if not version.is_proposal}:
        raise InvalidInput(
            f"the base is no label of the {submission.organ} of this case",
            case=submission.case_id,
            expected="the id of one of its labels, or none",
            got=submission.base,
            remedy="name the version that the label was made from",
        )
    return int(submission.base)
