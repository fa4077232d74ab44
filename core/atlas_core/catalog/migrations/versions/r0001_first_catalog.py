"""The first catalog: datasets, cases, labels, models, scores, iterations.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _datasets_and_cases()
    _labels()
    _models()
    _scores()
    op.create_table(
        "iterations",
        sa.Column("t", sa.Integer, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("started_at", _INSTANT, nullable=False),
        sa.Column("finished_at", _INSTANT),
        sa.PrimaryKeyConstraint("t", name="pk_iterations"),
    )


def _datasets_and_cases() -> None:
    op.create_table(
        "datasets",
        sa.Column("name", sa.String(63)),
        sa.Column("title", sa.String, nullable=False),
        sa.Column("licence", sa.String, nullable=False),
        sa.Column("url", sa.String, nullable=False),
        sa.Column("organs", sa.JSON, nullable=False),
        sa.Column("preset", sa.String),
        sa.PrimaryKeyConstraint("name", name="pk_datasets"),
    )
    op.create_table(
        "cases",
        sa.Column("id", sa.String(100)),
        sa.Column("dataset", sa.String(63), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("shape", sa.JSON, nullable=False),
        sa.Column("affine", sa.JSON, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("imported_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_cases"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name="fk_cases_dataset"),
        sa.UniqueConstraint("content_sha256", name="uq_cases_content_sha256"),
    )
    op.create_index("ix_cases_dataset", "cases", ["dataset"])


def _labels() -> None:
    op.create_table(
        "labels",
        sa.Column("id", sa.Integer),
        sa.Column("case_id", sa.String(100), nullable=False),
        sa.Column("organ", sa.String(63), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("value", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("voxels", sa.BigInteger, nullable=False),
        sa.Column("volume_ml", sa.Float(53), nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("annotator", sa.String),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_labels"),
        sa.ForeignKeyConstraint(
            ["case_id"], ["cases.id"], name="fk_labels_case_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint(
            "case_id", "organ", "source", "path", name="uq_labels_case_id_organ_source_path"
        ),
    )
    op.create_index("ix_labels_source_case_id_organ", "labels", ["source", "case_id", "organ"])
    _make_labels_immutable()


def _make_labels_immutable() -> None:
    """A label is provenance: whoever writes to the database directly may add one, not alter one."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER labels_are_immutable BEFORE UPDATE ON labels "
            "BEGIN SELECT RAISE(ABORT, 'labels are immutable: add a new one'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION labels_are_immutable() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'labels are immutable: add a new one'; END$$"
    )
    op.execute(
        "CREATE TRIGGER labels_are_immutable BEFORE UPDATE ON labels "
        "FOR EACH ROW EXECUTE FUNCTION labels_are_immutable()"
    )


def _models() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.String(63)),
        sa.Column("version", sa.Integer),
        sa.Column("sha256", sa.String(64)),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("parent", sa.JSON),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("provenance", sa.JSON, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", "sha256", name="pk_models"),
    )
    op.create_table(
        "ensembles",
        sa.Column("key", sa.String),
        sa.PrimaryKeyConstraint("key", name="pk_ensembles"),
    )
    op.create_table(
        "ensemble_models",
        sa.Column("ensemble", sa.String),
        sa.Column("name", sa.String(63)),
        sa.Column("version", sa.Integer),
        sa.Column("sha256", sa.String(64)),
        sa.PrimaryKeyConstraint("ensemble", "name", "version", "sha256", name="pk_ensemble_models"),
        sa.ForeignKeyConstraint(
            ["ensemble"], ["ensembles.key"], name="fk_ensemble_models_ensemble"
        ),
    )


def _scores() -> None:
    op.create_table(
        "scores",
        sa.Column("case_id", sa.String(100)),
        sa.Column("reading", sa.String(16)),
        sa.Column("ensemble", sa.String),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("case_id", "reading", "ensemble", name="pk_scores"),
        sa.ForeignKeyConstraint(
            ["case_id"], ["cases.id"], name="fk_scores_case_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["ensemble"], ["ensembles.key"], name="fk_scores_ensemble"),
    )
    op.create_index("ix_scores_reading_ensemble", "scores", ["reading", "ensemble"])
    op.create_index("ix_scores_reading_created_at", "scores", ["reading", "created_at"])
    op.create_table(
        "organ_scores",
        sa.Column("case_id", sa.String(100)),
        sa.Column("reading", sa.String(16)),
        sa.Column("ensemble", sa.String),
        sa.Column("organ", sa.String(63)),
        sa.Column("attention_voxels", sa.Float(53), nullable=False),
        sa.Column("attention_ml", sa.Float(53), nullable=False),
        sa.Column("pseudo_label_ml", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("case_id", "reading", "ensemble", "organ", name="pk_organ_scores"),
        sa.ForeignKeyConstraint(
            ["case_id", "reading", "ensemble"],
            ["scores.case_id", "scores.reading", "scores.ensemble"],
            name="fk_organ_scores_case_id_reading_ensemble",
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "ix_organ_scores_reading_ensemble_case_id",
        "organ_scores",
        ["reading", "ensemble", "case_id"],
    )
