"""Rows of labels and of what was handed in, as label versions."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.assembly import preferred
from atlas_core.catalog import tables as t
from atlas_core.errors import NotFound
from atlas_core.records import Label, LabelSource
from atlas_core.review.records import PROPOSAL_PREFIX, AuditEntry, LabelVersion, Submission

_l = t.labels.c
_s = t.label_submissions.c


def versions_of(connection: Connection, case_id: str) -> list[LabelVersion]:
    """Labels and proposals of a case, oldest first."""
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
    found += [of_proposal(row) for row in connection.execute(kept).mappings()]
    return sorted(found, key=lambda version: version.created_at)


def version_of(connection: Connection, case_id: str, version_id: str) -> LabelVersion:
    """One version, or `NotFound`."""
    for version in versions_of(connection, case_id):
        if version.id == version_id:
            return version
    raise NotFound("no such label version", case=case_id, got=version_id)


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


def of_proposal(row: sa.RowMapping) -> LabelVersion:
    """A row of `label_submissions` that no label belongs to."""
    return LabelVersion(
        id=f"{PROPOSAL_PREFIX}{row['id']}",
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


def insert_label(
    connection: Connection, mask: Submission | LabelVersion, author: str | None, now: datetime
) -> int:
    """Make a revised label of a mask that was handed in, or of a proposal; returns its id."""
    row = {
        "case_id": mask.case_id,
        "organ": mask.organ,
        "source": LabelSource.REVISED.value,
        "path": mask.path,
        "value": 1,
        "sha256": mask.sha256,
        "voxels": mask.voxels,
        "volume_ml": mask.volume_ml,
        "models": [],
        "annotator": author,
        "created_at": now,
    }
    return int(connection.execute(sa.insert(t.labels).values(row).returning(_l.id)).scalar_one())


def accept_proposal(connection: Connection, proposal: LabelVersion, now: datetime) -> int:
    """Make a label of a proposal; returns its id."""
    label_id = insert_label(connection, proposal, proposal.author, now)
    number = int(proposal.id.removeprefix(PROPOSAL_PREFIX))
    accepted = sa.update(t.label_submissions).where(_s.id == number).values(label_id=label_id)
    connection.execute(accepted)
    return label_id


def insert_submission(
    connection: Connection,
    submission: Submission,
    now: datetime,
    base_id: int | None,
    label_id: int | None,
) -> int:
    """Put on record what was handed in; returns its number."""
    row = {
        "case_id": submission.case_id,
        "organ": submission.organ,
        "path": submission.path,
        "sha256": submission.sha256,
        "voxels": submission.voxels,
        "volume_ml": submission.volume_ml,
        "author": submission.author.name,
        "created_at": now,
        "base_id": base_id,
        "task_id": submission.task_id,
        "label_id": label_id,
    }
    query = sa.insert(t.label_submissions).values(row).returning(_s.id)
    return int(connection.execute(query).scalar_one())


def hand_in_entry(submission: Submission, now: datetime, identity: str) -> AuditEntry:
    """The entry of the audit log for a hand-in."""
    return AuditEntry(
        at=now,
        who=submission.author.name,
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
