"""Series that come from hospitals, and where each stands.

Revision ID: 0015
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision: str | None = "0014"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "transfers",
        sa.Column("series", sa.String(64), nullable=False),
        sa.Column("study", sa.String(64), nullable=False),
        sa.Column("patient", sa.String(64), nullable=False),
        sa.Column("dataset", sa.String(63), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("expected", sa.Integer()),
        sa.Column("case_id", sa.String(100)),
        sa.Column("pushed", sa.JSON(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("series", name="pk_transfers"),
        sa.ForeignKeyConstraint(
            ["case_id"], ["cases.id"], name="fk_transfers_case_id_cases", ondelete="SET NULL"
        ),
    )
    for column in ("study", "patient", "state", "case_id"):
        op.create_index(f"ix_transfers_{column}", "transfers", [column])


def downgrade() -> None:
    op.drop_table("transfers")
