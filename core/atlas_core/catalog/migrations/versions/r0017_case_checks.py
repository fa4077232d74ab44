"""What checks found remarkable about cases: their scans, and where their labels lie.

Cases from before have no row: they are checked when somebody asks for it.

Revision ID: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision: str | None = "0016"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "case_checks",
        sa.Column("case_id", sa.String(100), nullable=False),
        sa.Column("part", sa.String(16), nullable=False),
        sa.Column("inputs_sha256", sa.String(64), nullable=False),
        sa.Column("found", sa.Integer, nullable=False),
        sa.Column("warnings", sa.JSON, nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("case_id", "part", name="pk_case_checks"),
        sa.ForeignKeyConstraint(
            ["case_id"], ["cases.id"], name="fk_case_checks_case_id_cases", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    op.drop_table("case_checks")
