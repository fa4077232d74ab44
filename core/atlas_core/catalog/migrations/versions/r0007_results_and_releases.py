"""Which result of a case is in force, and by which numbers releases name cases.

Revision ID: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("scores", sa.Column("number", sa.Integer, nullable=False, server_default="1"))
    op.create_table(
        "released_cases",
        sa.Column("number", sa.Integer),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_released_cases"),
        sa.UniqueConstraint("content_sha256", name="uq_released_cases_content_sha256"),
    )
