"""Which window of a browser works on a task, drafts by window, and comments on cases.

Drafts from before belong to no window.

Revision ID: 0016
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision: str | None = "0015"
branch_labels: str | None = None
depends_on: str | None = None

_INSTANT = sa.DateTime(timezone=True)

_DRAFTS = sa.table(
    "revision_drafts",
    sa.column("task_id", sa.Integer),
    sa.column("author", sa.String),
    sa.column("path", sa.String),
    sa.column("sha256", sa.String),
    sa.column("base", sa.JSON),
    sa.column("saved_at", _INSTANT),
)


def upgrade() -> None:
    op.add_column("revision_tasks", sa.Column("page", sa.String(64)))
    # SQLite cannot change a primary key: the table is made anew, with what it held.
    drafts = _drafts()
    op.drop_table("revision_drafts")
    op.create_table(
        "revision_drafts",
        sa.Column("task_id", sa.Integer, nullable=False),
        sa.Column("author", sa.String(100), nullable=False),
        sa.Column("page", sa.String(64), nullable=False, server_default=""),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("base", sa.JSON, nullable=False),
        sa.Column("saved_at", _INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["revision_tasks.id"],
            name="fk_revision_drafts_task_id_revision_tasks",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("task_id", "author", "page", name="pk_revision_drafts"),
    )
    if drafts:
        op.bulk_insert(_DRAFTS, drafts)
    op.create_table(
        "revision_comments",
        sa.Column("id", sa.Integer),
        sa.Column("case_id", sa.String(100), nullable=False),
        sa.Column("author", sa.String(100), nullable=False),
        sa.Column("text", sa.String, nullable=False),
        sa.Column("organ", sa.String(63)),
        sa.Column("voxel_ijk", sa.JSON),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["case_id"],
            ["cases.id"],
            name="fk_revision_comments_case_id_cases",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_revision_comments"),
    )
    op.create_index("ix_revision_comments_case_id", "revision_comments", ["case_id"])


def downgrade() -> None:
    """Of the drafts of an author the newest stays."""
    op.drop_table("revision_comments")
    drafts = {(row["task_id"], row["author"]): row for row in _drafts()}
    if op.get_bind().dialect.name == "postgresql":  # in place: the rights on the table stay
        op.execute(sa.delete(_DRAFTS))
        op.drop_constraint("pk_revision_drafts", "revision_drafts")
        op.drop_column("revision_drafts", "page")
        op.create_primary_key("pk_revision_drafts", "revision_drafts", ["task_id", "author"])
    else:
        op.drop_table("revision_drafts")
        op.create_table(
            "revision_drafts",
            sa.Column("task_id", sa.Integer),
            sa.Column("author", sa.String(100)),
            sa.Column("path", sa.String, nullable=False),
            sa.Column("sha256", sa.String(64), nullable=False),
            sa.Column("base", sa.JSON, nullable=False),
            sa.Column("saved_at", _INSTANT, nullable=False),
            sa.PrimaryKeyConstraint("task_id", "author", name="pk_revision_drafts"),
            sa.ForeignKeyConstraint(
                ["task_id"],
                ["revision_tasks.id"],
                name="fk_revision_drafts_task_id_revision_tasks",
                ondelete="CASCADE",
            ),
        )
    if drafts:
        op.bulk_insert(_DRAFTS, list(drafts.values()))
    op.drop_column("revision_tasks", "page")


def _drafts() -> list[dict[str, Any]]:
    """The oldest first."""
    query = sa.select(_DRAFTS).order_by(_DRAFTS.c.saved_at)
    return [dict(row) for row in op.get_bind().execute(query).mappings()]
