"""Revision: the queue, submissions, drafts, flags, sign-ins, audit log, outgoing events.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

_INSTANT = sa.DateTime(timezone=True)
_PENDING = sa.text("state IN ('open', 'second_reading')")


def upgrade() -> None:
    _tasks()
    _task_details()
    _submissions()
    _drafts_and_flags()
    _people()
    _outgoing_events()


def _tasks() -> None:
    table = "revision_tasks"
    op.create_table(
        table,
        sa.Column("id", sa.Integer),
        sa.Column("case_id", sa.String(100), nullable=False),
        sa.Column("dataset", sa.String(63), nullable=False),
        sa.Column("reading", sa.String(16), nullable=False),
        sa.Column("ensemble", sa.String, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("attention_ml", sa.Float(53), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("assignee", sa.String(100)),
        sa.Column("lease_expires_at", _INSTANT),
        sa.Column("first_reader", sa.String(100)),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revision_tasks"),
        _of_case(table),
        sa.UniqueConstraint(
            "case_id", "reading", "ensemble", name="uq_revision_tasks_case_id_reading_ensemble"
        ),
    )
    op.create_index(
        "ix_revision_tasks_pending",
        table,
        ["rank", "id"],
        postgresql_where=_PENDING,
        sqlite_where=_PENDING,
    )
    op.create_index(
        "ix_revision_tasks_one_pending_per_case",
        table,
        ["case_id"],
        unique=True,
        postgresql_where=_PENDING,
        sqlite_where=_PENDING,
    )
    op.create_index("ix_revision_tasks_assignee", table, ["assignee"])
    op.create_index("ix_revision_tasks_dataset_state", table, ["dataset", "state"])


def _task_details() -> None:
    op.create_table(
        "revision_task_organs",
        sa.Column("task_id", sa.Integer),
        sa.Column("organ", sa.String(63)),
        sa.Column("attention_ml", sa.Float(53), nullable=False),
        sa.Column("verdict", sa.String(16)),
        sa.Column("error_type", sa.String(63)),
        sa.Column("note", sa.String, nullable=False),
        sa.Column("decided_by", sa.String(100)),
        sa.Column("decided_at", _INSTANT),
        sa.PrimaryKeyConstraint("task_id", "organ", name="pk_revision_task_organs"),
        _of_task("revision_task_organs"),
    )
    op.create_index(
        "ix_revision_task_organs_organ_attention_ml",
        "revision_task_organs",
        ["organ", "attention_ml"],
    )
    op.create_table(
        "revision_work",
        sa.Column("id", sa.Integer),
        sa.Column("task_id", sa.Integer, nullable=False),
        sa.Column("annotator", sa.String(100), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("finished_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revision_work"),
        _of_task("revision_work"),
    )
    op.create_index("ix_revision_work_task_id", "revision_work", ["task_id"])


def _submissions() -> None:
    table = "label_submissions"
    op.create_table(
        table,
        sa.Column("id", sa.Integer),
        sa.Column("case_id", sa.String(100), nullable=False),
        sa.Column("organ", sa.String(63), nullable=False),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("voxels", sa.BigInteger, nullable=False),
        sa.Column("volume_ml", sa.Float(53), nullable=False),
        sa.Column("author", sa.String(100), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("base_id", sa.Integer),
        sa.Column("task_id", sa.Integer),
        sa.Column("label_id", sa.Integer),
        sa.PrimaryKeyConstraint("id", name="pk_label_submissions"),
        _of_case(table),
        sa.ForeignKeyConstraint(
            ["base_id"], ["labels.id"], name="fk_label_submissions_base_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["revision_tasks.id"],
            name="fk_label_submissions_task_id",
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["label_id"], ["labels.id"], name="fk_label_submissions_label_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("path", name="uq_label_submissions_path"),
        sa.UniqueConstraint("label_id", name="uq_label_submissions_label_id"),
    )
    op.create_index("ix_label_submissions_case_id_organ", table, ["case_id", "organ"])


def _drafts_and_flags() -> None:
    op.create_table(
        "revision_drafts",
        sa.Column("task_id", sa.Integer),
        sa.Column("author", sa.String(100)),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("base", sa.JSON, nullable=False),
        sa.Column("saved_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("task_id", "author", name="pk_revision_drafts"),
        _of_task("revision_drafts"),
    )
    op.create_table(
        "case_flags",
        sa.Column("case_id", sa.String(100)),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("flagged_by", sa.String(100), nullable=False),
        sa.Column("flagged_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("case_id", name="pk_case_flags"),
        _of_case("case_flags"),
    )


def _people() -> None:
    op.create_table(
        "sign_ins",
        sa.Column("secret_sha256", sa.String(64)),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("user_name", sa.String(100), nullable=False),
        sa.Column("roles", sa.JSON, nullable=False),
        sa.Column("csrf_token", sa.String(64), nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("secret_sha256", name="pk_sign_ins"),
    )
    op.create_index("ix_sign_ins_expires_at", "sign_ins", ["expires_at"])
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer),
        sa.Column("at", _INSTANT, nullable=False),
        sa.Column("who", sa.String(100), nullable=False),
        sa.Column("action", sa.String(63), nullable=False),
        sa.Column("case_id", sa.String(100)),
        sa.Column("task_id", sa.Integer),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_index("ix_audit_log_task_id", "audit_log", ["task_id"])
    op.create_index("ix_audit_log_case_id", "audit_log", ["case_id"])


def _outgoing_events() -> None:
    op.create_table(
        "outgoing_events",
        sa.Column("id", sa.Integer),
        sa.Column("key", sa.String(100), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("occurred_at", _INSTANT, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", _INSTANT, nullable=False),
        sa.Column("delivered_at", _INSTANT),
        sa.Column("last_error", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outgoing_events"),
        sa.UniqueConstraint("key", name="uq_outgoing_events_key"),
    )


def _of_case(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["case_id"], ["cases.id"], name=f"fk_{table}_case_id", ondelete="CASCADE"
    )


def _of_task(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["task_id"], ["revision_tasks.id"], name=f"fk_{table}_task_id", ondelete="CASCADE"
    )
