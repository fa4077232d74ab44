"""The catalog's tables, the same on SQLite and PostgreSQL.

The Alembic migrations under `atlas_core.catalog.migrations` build exactly these (a test compares
both).
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    text,
)

REVISION = "0018"
"""Newest Alembic revision that this version of the code works with."""

VERSION_TABLE = "atlasloop_schema"
"""Table of the revision; other programs may use Alembic's default name in the same database."""


class UtcDateTime(TypeDecorator[datetime]):
    """An instant, kept in UTC; SQLite has no time zones, so it is stored there without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant needs a time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

datasets = Table(
    "datasets",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("title", String, nullable=False),
    Column("licence", String, nullable=False),
    Column("url", String, nullable=False),
    Column("organs", JSON, nullable=False),
    Column("preset", String),
)

cases = Table(
    "cases",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("dataset", String(63), ForeignKey("datasets.name"), nullable=False, index=True),
    # One CT is one case, whichever datasets it came with: public datasets overlap.
    Column("content_sha256", String(64), nullable=False, unique=True),
    Column("shape", JSON, nullable=False),
    Column("affine", JSON, nullable=False),
    Column("source", String, nullable=False),
    Column("imported_at", UtcDateTime, nullable=False),
    # Equal for copies of one scan; empty in cases of older versions (before revision 0014).
    Column("fingerprint", String(64), index=True),
)

labels = Table(
    "labels",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("case_id", String(100), ForeignKey("cases.id", ondelete="CASCADE"), nullable=False),
    Column("organ", String(63), nullable=False),
    Column("source", String(16), nullable=False),
    Column("path", String, nullable=False),
    Column("value", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("voxels", BigInteger, nullable=False),
    Column("volume_ml", Float(53), nullable=False),
    Column("models", JSON, nullable=False),
    Column("annotator", String),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("case_id", "organ", "source", "path"),
    Index("ix_labels_source_case_id_organ", "source", "case_id", "organ"),
)

# UIDs of its scan, as checksums (revision 0018); see `records.UidRole`.
case_uids = Table(
    "case_uids",
    metadata,
    Column("case_id", String(100), ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True),
    Column("role", String(16), primary_key=True),
    Column("uid_sha256", String(64), primary_key=True, index=True),
)

# What a check found, for people to look at (revision 0017). No row: not checked.
case_checks = Table(
    "case_checks",
    metadata,
    Column("case_id", String(100), ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True),
    # scan, labels: `records.CheckedPart`
    Column("part", String(16), primary_key=True),
    # Of what was looked at; equal inputs need no second look.
    Column("inputs_sha256", String(64), nullable=False),
    # How many warnings there are.
    Column("found", Integer, nullable=False),
    Column("warnings", JSON, nullable=False),
    Column("checked_at", UtcDateTime, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("spec", JSON, nullable=False),
    Column("parent", JSON),
    Column("metrics", JSON, nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# Models of an ensemble are named by value: a case may be scored by models that a remote server
# holds and that were never registered here.
ensembles = Table("ensembles", metadata, Column("key", String, primary_key=True))

ensemble_models = Table(
    "ensemble_models",
    metadata,
    Column("ensemble", String, ForeignKey("ensembles.key"), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("sha256", String(64), primary_key=True),
)

scores = Table(
    "scores",
    metadata,
    Column("case_id", String(100), ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True),
    Column("reading", String(16), primary_key=True),
    Column("ensemble", String, ForeignKey("ensembles.key"), primary_key=True),
    # Which of the results that the case store has under this key; see `CaseStore.new_prediction`.
    Column("number", Integer, nullable=False, server_default="1"),
    Column("seconds", Float(53), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    # The ranking asks for one reading and ensemble; the newest ensemble is asked for by time.
    Index("ix_scores_reading_ensemble", "reading", "ensemble"),
    Index("ix_scores_reading_created_at", "reading", "created_at"),
)

organ_scores = Table(
    "organ_scores",
    metadata,
    Column("case_id", String(100), primary_key=True),
    Column("reading", String(16), primary_key=True),
    Column("ensemble", String, primary_key=True),
    Column("organ", String(63), primary_key=True),
    Column("attention_voxels", Float(53), nullable=False),
    Column("attention_ml", Float(53), nullable=False),
    Column("pseudo_label_ml", Float(53), nullable=False),
    # Empty in scores of versions that did not count it (before revision 0008).
    Column("disagreement", Float(53)),
    Column("expected_ml", Float(53)),
    # Empty in scores of versions whose models all knew all organs (before revision 0011).
    Column("voices", Integer),
    # Empty in scores from before revision 0013.
    Column("attended_ml", Float(53)),
    ForeignKeyConstraint(
        ["case_id", "reading", "ensemble"],
        ["scores.case_id", "scores.reading", "scores.ensemble"],
        ondelete="CASCADE",
    ),
    Index("ix_organ_scores_reading_ensemble_case_id", "reading", "ensemble", "case_id"),
)

iterations = Table(
    "iterations",
    metadata,
    Column("t", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
)

# What of an iteration is done; see `atlas_core.loop.steps`. Rows are only ever added.
iteration_steps = Table(
    "iteration_steps",
    metadata,
    Column("t", Integer, ForeignKey("iterations.t"), primary_key=True, autoincrement=False),
    Column("step", String(100), primary_key=True),
    Column("result", JSON, nullable=False),
    Column("done_at", UtcDateTime, nullable=False),
)

# Revision: the queue, what annotators hand in, and who did what (revision 0002)

revision_tasks = Table(
    "revision_tasks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("case_id", String(100), ForeignKey("cases.id", ondelete="CASCADE"), nullable=False),
    Column("dataset", String(63), nullable=False),
    Column("reading", String(16), nullable=False),
    Column("ensemble", String, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("attention_ml", Float(53), nullable=False),
    # open, second_reading, revised, confirmed, skipped. "Leased" is no state of its own: a lease
    # ends by itself, at an instant, without anybody writing.
    Column("state", String(16), nullable=False),
    Column("assignee", String(100)),
    Column("lease_expires_at", UtcDateTime),
    # Who asked for a second reader, and so cannot be that reader.
    Column("first_reader", String(100)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    # What the list was sorted by: `records.RankBy`.
    Column("ranked_by", String(16), nullable=False, server_default="size"),
    Column("disagreement", Float(53)),
    # The window of its holder's browser that works on it; NULL: a program that names none.
    Column("page", String(64)),
    UniqueConstraint("case_id", "reading", "ensemble"),
    # The next case is the first row of this index without a lease.
    Index(
        "ix_revision_tasks_pending",
        "rank",
        "id",
        postgresql_where=text("state IN ('open', 'second_reading')"),
        sqlite_where=text("state IN ('open', 'second_reading')"),
    ),
    # Two annotators never work on one case, whatever ensembles it was queued for.
    Index(
        "ix_revision_tasks_one_pending_per_case",
        "case_id",
        unique=True,
        postgresql_where=text("state IN ('open', 'second_reading')"),
        sqlite_where=text("state IN ('open', 'second_reading')"),
    ),
    Index("ix_revision_tasks_assignee", "assignee"),
    Index("ix_revision_tasks_dataset_state", "dataset", "state"),
)

revision_task_organs = Table(
    "revision_task_organs",
    metadata,
    Column(
        "task_id", Integer, ForeignKey("revision_tasks.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("organ", String(63), primary_key=True),
    Column("attention_ml", Float(53), nullable=False),
    Column("verdict", String(16)),
    Column("error_type", String(63)),
    Column("note", String, nullable=False),
    Column("decided_by", String(100)),
    Column("decided_at", UtcDateTime),
    Column("disagreement", Float(53)),
    # What the organ added to its case's place in the list: `ranking.weight`.
    Column("weight", Float(53), nullable=False, server_default="0"),
    Index("ix_revision_task_organs_organ_weight", "organ", "weight"),
)

revision_work = Table(
    "revision_work",
    metadata,
    Column("id", Integer, primary_key=True),
    Column(
        "task_id",
        Integer,
        ForeignKey("revision_tasks.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("annotator", String(100), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("finished_at", UtcDateTime, nullable=False),
)

# Every mask that was handed in. It became a label (`label_id`) or, if made from a version that was
# not the latest, is kept here only, so that it never outranks a label its author has not seen.
label_submissions = Table(
    "label_submissions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("case_id", String(100), ForeignKey("cases.id", ondelete="CASCADE"), nullable=False),
    Column("organ", String(63), nullable=False),
    Column("path", String, nullable=False, unique=True),
    Column("sha256", String(64), nullable=False),
    Column("voxels", BigInteger, nullable=False),
    Column("volume_ml", Float(53), nullable=False),
    Column("author", String(100), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("base_id", Integer, ForeignKey("labels.id", ondelete="CASCADE")),
    Column("task_id", Integer, ForeignKey("revision_tasks.id", ondelete="SET NULL")),
    Column("label_id", Integer, ForeignKey("labels.id", ondelete="CASCADE"), unique=True),
    Index("ix_label_submissions_case_id_organ", "case_id", "organ"),
)

revision_drafts = Table(
    "revision_drafts",
    metadata,
    Column(
        "task_id", Integer, ForeignKey("revision_tasks.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("author", String(100), primary_key=True),
    # Two windows of one person never overwrite each other; empty: a program that names none.
    Column("page", String(64), primary_key=True, server_default=""),
    Column("path", String, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("base", JSON, nullable=False),
    Column("saved_at", UtcDateTime, nullable=False),
)

revision_comments = Table(
    "revision_comments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column(
        "case_id",
        String(100),
        ForeignKey("cases.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("author", String(100), nullable=False),
    Column("text", String, nullable=False),
    Column("organ", String(63)),
    Column("voxel_ijk", JSON),
    Column("created_at", UtcDateTime, nullable=False),
)

case_flags = Table(
    "case_flags",
    metadata,
    Column("case_id", String(100), ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True),
    Column("reason", String, nullable=False),
    Column("flagged_by", String(100), nullable=False),
    Column("flagged_at", UtcDateTime, nullable=False),
)

# Sign-ins are kept here, so that every replica of the service knows them. Only hashes of secrets.
sign_ins = Table(
    "sign_ins",
    metadata,
    Column("secret_sha256", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("user_name", String(100), nullable=False),
    Column("roles", JSON, nullable=False),
    Column("csrf_token", String(64), nullable=False),
    Column("expires_at", UtcDateTime, nullable=False, index=True),
)

# No foreign keys: what was done stays on record when its case is deleted. A trigger refuses to
# change what it holds (revision 0006).
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("who", String(100), nullable=False),
    Column("action", String(63), nullable=False),
    Column("case_id", String(100)),
    Column("task_id", Integer),
    Column("detail", JSON, nullable=False),
    Index("ix_audit_log_task_id", "task_id"),
    Index("ix_audit_log_case_id", "case_id"),
)

# Events for the orchestrator, kept until they are delivered.
outgoing_events = Table(
    "outgoing_events",
    metadata,
    Column("id", Integer, primary_key=True),
    # Identifies the occurrence, so that two services record it once.
    Column("key", String(100), nullable=False, unique=True),
    Column("name", String(100), nullable=False),
    Column("payload", JSON, nullable=False),
    Column("occurred_at", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", UtcDateTime, nullable=False),
    Column("delivered_at", UtcDateTime),
    Column("last_error", String, nullable=False),
)

# Life cycle of models; see `atlas_core.catalog.model_registry`. Rows are only ever added.

promotions = Table(
    "promotions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(63), nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("previous_version", Integer),
    Column("kind", String(16), nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("who", String, nullable=False),
    Column("why", String, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

model_evaluations = Table(
    "model_evaluations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    # Of the cases and the labels that they were compared with: figures of other truth differ.
    Column("truth_sha256", String(64), nullable=False),
    Column("cases", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_model_evaluations_name_version_sha256", "name", "version", "sha256"),
)

# The labels a model was trained on, by value: the record outlives a deleted case.
model_labels = Table(
    "model_labels",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("case_id", String(100), primary_key=True),
    Column("organ", String(63), primary_key=True),
    Column("label_sha256", String(64), nullable=False),
    Column("source", String(16), nullable=False),
)

# Assembled label maps (revision 0004). Rows are only ever added; the newest of a case counts.
assemblies = Table(
    "assemblies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("case_id", String(100), ForeignKey("cases.id", ondelete="CASCADE"), nullable=False),
    Column("path", String, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("inputs_sha256", String(64), nullable=False),
    Column("reading", String(16)),
    Column("ensemble", String),
    Column("organs", JSON, nullable=False),
    Column("missing", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_assemblies_case_id_id", "case_id", "id"),
)

# The numbers by which releases name cases (revision 0007), by content: what is published once means
# the same CT for ever, whatever becomes of its case.
released_cases = Table(
    "released_cases",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("content_sha256", String(64), nullable=False, unique=True),
)

# Which organs this atlas has (revision 0009). Rows are only ever added; the newest counts.
organ_schemes = Table(
    "organ_schemes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(63), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("organs", JSON, nullable=False),
    Column("recorded_at", UtcDateTime, nullable=False),
)

# Ensembles by name (revision 0010). Rows are only ever added, which a trigger sees to: a row is an
# ensemble after one change, the newest of a name says how it is now.
ensemble_changes = Table(
    "ensemble_changes",
    metadata,
    Column("revision", Integer, primary_key=True),
    Column("name", String(63), nullable=False, index=True),
    Column("ensemble", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("action", String(63), nullable=False),
    Column("who", String, nullable=False),
    Column("why", String, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# Series that come from hospitals, by pseudonym (revision 0015). The vault of the de-identification
# knows whose they are; nothing here does.
transfers = Table(
    "transfers",
    metadata,
    Column("series", String(64), primary_key=True),
    Column("study", String(64), nullable=False, index=True),
    Column("patient", String(64), nullable=False, index=True),
    Column("dataset", String(63), nullable=False),
    # `atlas_core.pacs.TransferState`
    Column("state", String(16), nullable=False, index=True),
    Column("reason", String, nullable=False),
    # Images that the sender says it has; empty: it did not say.
    Column("expected", Integer),
    Column("case_id", String(100), ForeignKey("cases.id", ondelete="SET NULL"), index=True),
    Column("pushed", JSON, nullable=False),
    Column("asked_at", UtcDateTime, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
)
