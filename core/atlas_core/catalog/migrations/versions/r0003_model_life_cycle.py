"""Life cycle of models: promotions, evaluations, and what each model learnt from.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("previous_version", sa.Integer),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("forced", sa.Boolean, nullable=False),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("why", sa.String, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
    )
    op.create_index("ix_promotions_name", "promotions", ["name"])
    op.create_table(
        "model_evaluations",
        sa.Column("id", sa.Integer),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("truth_sha256", sa.String(64), nullable=False),
        sa.Column("cases", sa.JSON, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_model_evaluations"),
    )
    op.create_index(
        "ix_model_evaluations_name_version_sha256",
        "model_evaluations",
        ["name", "version", "sha256"],
    )
    op.create_table(
        "model_labels",
        sa.Column("name", sa.String(63)),
        sa.Column("version", sa.Integer),
        sa.Column("sha256", sa.String(64)),
        sa.Column("case_id", sa.String(100)),
        sa.Column("organ", sa.String(63)),
        sa.Column("label_sha256", sa.String(64), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint(
            "name", "version", "sha256", "case_id", "organ", name="pk_model_labels"
        ),
    )
