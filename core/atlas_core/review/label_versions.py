"""Label versions: every label of an organ, from each source, and the labels annotators submit.

A version never changes. A label that is handed in names the version it was made from, its base. If
that is no longer the latest version, both are kept and no work is lost: the new label stays a
submission of its own, which assembly does not see, until somebody has compared the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.assembly import preferred
from atlas_core.catalog import Catalog, now
from atlas_core.catalog import tables as t
from atlas_core.errors import Conflict, InvalidInput, NotFound
from atlas_core.records import Label, LabelSource
from atlas_core.review.audit_log import note
from atlas_core.review.clock import Clock
from atlas_core.review.records import AuditEntry, LabelVersion

NO_BASE: Final = "none"
"""Base of a label of an organ that had none."""

CONFLICT_PREFIX: Final = "conflict-"

_l = t.labels.c
_s = t.label_submissions.c


class StaleBase(Conflict):
    """A label was made from a version that is no longer the latest. Both are kept.

    Attributes:
        current: the latest version; None if the organ has none.
        submitted: what was handed in, as it is kept.
    """

    def __init__(self, current: LabelVersion | None, submitted: LabelVersion) -> None:
        self.current = current
        self.submitted = submitted
        super().__init__(
            f"the {submitted.organ} was changed by somebody else meanwhile; both labels are kept",
            case=submitted.case_id,
            expected=f"base {current.id if current else NO_BASE}",
            got=f"base {submitted.base or NO_BASE}",
            remedy="compare the two, and hand in a label that is made from the latest version",
        )


@dataclass(frozen=True)
class Submission:
    """A mask that is in the store and not yet on record.

    Attributes:
        case_id, organ: what it segments.
        path, sha256: its file in the case store, shared with no other label.
        voxels, volume_ml: its size.
        author: who drew it.
        base: id of the version that it was made from, or `NO_BASE`.
        task_id: the task that it was drawn for, if any.
    """

    case_id: str
    organ: str
    path: str
    sha256: str
    voxels: int
    volume_ml: float
    author: str
    base: str
    task_id: int | None = None


class LabelVersions:
    """The label versions in a catalog. Safe to share between threads."""

    def __init__(self, catalog: Catalog, *, clock: Clock = now) -> None:
        self._catalog = catalog
        self._now = clock

    def versions(
        self, case_id: str, organ: str | None = None, source: LabelSource | None = None
    ) -> list[LabelVersion]:
        """Every version of a case (of one organ, of one source), conflicts included, oldest
        first."""
        with self._catalog.transaction(write=False) as connection:
            found = _versions(connection, case_id)
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
        for version in self.versions(case_id):
            if version.id == version_id:
                return version
        raise NotFound("no such label version", case=case_id, got=version_id)

    def submit(self, submission: Submission) -> LabelVersion:
        """Put a label on record: as the revised label of its organ, or as a conflict.

        The same mask as the newest revision (from a client that missed the answer and sends again)
        is no new version: that revision is returned.

        Raises:
            NotFound: no such case.
            InvalidInput: the base is no version of this case and organ.
            StaleBase: the base is not the latest version. What was handed in is on record.
        """
        with self._catalog.transaction(write=True) as connection:
            _lock_case(connection, submission.case_id)
            known = _versions(connection, submission.case_id)
            known = [version for version in known if version.organ == submission.organ]
            latest = _latest(known)
            base_id = _base_id(submission, known)
            if (
                latest is not None
                and latest.source is LabelSource.REVISED
                and latest.sha256 == submission.sha256
            ):
                return latest
            fresh = submission.base == (latest.id if latest else NO_BASE)
            now = max([self._now(), *(v.created_at + timedelta(microseconds=1) for v in known)])
            label_id = _insert_label(connection, submission, now) if fresh else None
            submission_id = _insert_submission(connection, submission, now, base_id, label_id)
            identity = f"{CONFLICT_PREFIX}{submission_id}" if label_id is None else str(label_id)
            note(connection, _audit(submission, now, identity))
            found = _versions(connection, submission.case_id)
        submitted = next(version for version in found if version.id == identity)
        if not fresh:
            raise StaleBase(latest, submitted)
        return submitted


def _is_conflict(version: LabelVersion) -> bool:
    return version.id.startswith(CONFLICT_PREFIX)


def _latest(versions: list[LabelVersion]) -> LabelVersion | None:
    """The newest revision among the versions of one organ, oldest first; without any, the version
    in force."""
    revised = [v for v in versions if v.source is LabelSource.REVISED and not _is_conflict(v)]
    return revised[-1] if revised else next((v for v in versions if v.in_force), None)


def _lock_case(connection: Connection, case_id: str) -> None:
    """Let submissions for one case follow one another."""
    query = sa.select(t.cases.c.id).where(t.cases.c.id == case_id).with_for_update()
    if connection.scalar(query) is None:
        raise NotFound("no such case in the catalog", case=case_id)


def _base_id(submission: Submission, known: list[LabelVersion]) -> int | None:
    if submission.base == NO_BASE:
        return None
    if submission.base not in {version.id for version in known if not _is_conflict(version)}:
        raise InvalidInput(
            f"the base is no label of the {submission.organ} of this case",
            case=submission.case_id,
            expected="the id of one of its labels, or none",
            got=submission.base,
            remedy="name the version that the label was made from",
        )
    return int(submission.base)


def _versions(connection: Connection, case_id: str) -> list[LabelVersion]:
    """Labels and conflicts of a case, oldest first."""
    query = (
        sa.select(*t.labels.c, _s.base_id)
        .outerjoin(t.label_submissions, _s.label_id == _l.id)
        .where(_l.case_id == case_id)
        .order_by(_l.created_at, _l.id)
    )
    rows = list(connection.execute(query).mappings())
    labels = {row["id"]: _label(row) for row in rows}
    chosen = _in_force(labels)
    found = [_of_label(row, row["id"] in chosen) for row in rows]
    kept = sa.select(t.label_submissions).where(_s.case_id == case_id, _s.label_id.is_(None))
    found += [_of_conflict(row) for row in connection.execute(kept).mappings()]
    return sorted(found, key=lambda version: version.created_at)


def _label(row: sa.RowMapping) -> Label:
    return Label.model_validate({name: row[name] for name in Label.model_fields})


def _in_force(labels: dict[int, Label]) -> set[int]:
    """Ids of the labels that assembly takes, one for each organ."""
    by_organ: dict[str, dict[int, Label]] = {}
    for number, label in labels.items():
        by_organ.setdefault(label.organ, {})[number] = label
    chosen = set()
    for candidates in by_organ.values():
        best = preferred(candidates.values())
        chosen.add(next(number for number, label in candidates.items() if label is best))
    return chosen


def _of_label(row: sa.RowMapping, in_force: bool) -> LabelVersion:
    return LabelVersion(
        id=str(row["id"]),
        case_id=row["case_id"],
        organ=row["organ"],
        source=row["source"],
        path=row["path"],
        value=row["value"],
        sha256=row["sha256"],
        voxels=row["voxels"],
        volume_ml=row["volume_ml"],
        author=row["annotator"],
        models=row["models"],
        created_at=row["created_at"],
        base=None if row["base_id"] is None else str(row["base_id"]),
        in_force=in_force,
    )


def _of_conflict(row: sa.RowMapping) -> LabelVersion:
    return LabelVersion(
        id=f"{CONFLICT_PREFIX}{row['id']}",
        case_id=row["case_id"],
        organ=row["organ"],
        source=LabelSource.REVISED,
        path=row["path"],
        value=1,
        sha256=row["sha256"],
        voxels=row["voxels"],
        volume_ml=row["volume_ml"],
        author=row["author"],
        created_at=row["created_at"],
        base=None if row["base_id"] is None else str(row["base_id"]),
        in_force=False,
    )


def _insert_label(connection: Connection, submission: Submission, now: datetime) -> int:
    row = {
        "case_id": submission.case_id,
        "organ": submission.organ,
        "source": LabelSource.REVISED.value,
        "path": submission.path,
        "value": 1,
        "sha256": submission.sha256,
        "voxels": submission.voxels,
        "volume_ml": submission.volume_ml,
        "models": [],
        "annotator": submission.author,
        "created_at": now,
    }
    return int(connection.execute(sa.insert(t.labels).values(row).returning(_l.id)).scalar_one())


def _insert_submission(
    connection: Connection,
    submission: Submission,
    now: datetime,
    base_id: int | None,
    label_id: int | None,
) -> int:
    row = {
        "case_id": submission.case_id,
        "organ": submission.organ,
        "path": submission.path,
        "sha256": submission.sha256,
        "voxels": submission.voxels,
        "volume_ml": submission.volume_ml,
        "author": submission.author,
        "created_at": now,
        "base_id": base_id,
        "task_id": submission.task_id,
        "label_id": label_id,
    }
    query = sa.insert(t.label_submissions).values(row).returning(_s.id)
    return int(connection.execute(query).scalar_one())


def _audit(submission: Submission, now: datetime, identity: str) -> AuditEntry:
    return AuditEntry(
        at=now,
        who=submission.author,
        action="hand in label",
        case_id=submission.case_id,
        task_id=submission.task_id,
        detail={
            "organ": submission.organ,
            "version": identity,
            "base": submission.base,
            "sha256": submission.sha256,
        },
    )
