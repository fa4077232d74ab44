"""What each iteration of the loop has done.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "iteration_steps",
        sa.Column("t", sa.Integer),
        sa.Column("step", sa.String(100)),
        sa.Column("result", sa.JSON, nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("t", "step", name="pk_iteration_steps"),
        sa.ForeignKeyConstraint(["t"], ["iterations.t"], name="fk_iteration_steps_t_iterations"),
    )
