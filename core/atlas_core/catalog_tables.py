"""The catalog's tables, the same on SQLite and PostgreSQL.

The Alembic migrations under `atlas_core.migrations` build exactly this (a test compares both).
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
)

REVISION = "0003"
"""Newest Alembic revision that this version of the code works with."""

VERSION_TABLE = "atlasloop_schema"
"""Where the revision is kept: not Alembic's default name, which other programs use for theirs."""


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
    # One CT is one case, whichever datasets it comes with: public datasets contain each other.
    Column("content_sha256", String(64), nullable=False, unique=True),
    Column("shape", JSON, nullable=False),
    Column("affine", JSON, nullable=False),
    Column("source", String, nullable=False),
    Column("imported_at", UtcDateTime, nullable=False),
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

# Life cycle of models; see `atlas_core.model_registry`. Rows are only ever added.

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

# What a model learnt from, by value: a case may be deleted, what a model knows of it may not.
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
