"""What a task was ranked by, the volume that attention reaches 0.2 in, and disagreement in tasks.

Tasks from before were ranked by attention size; scores from before have no attended volume.

Revision ID: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision: str | None = "0011"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("organ_scores", sa.Column("attended_ml", sa.Float(53)))
    op.add_column(
        "revision_tasks",
        sa.Column("ranked_by", sa.String(16), nullable=False, server_default="size"),
    )
    op.add_column("revision_tasks", sa.Column("disagreement", sa.Float(53)))
    op.add_column("revision_task_organs", sa.Column("disagreement", sa.Float(53)))
    op.add_column(
        "revision_task_organs",
        sa.Column("weight", sa.Float(53), nullable=False, server_default="0"),
    )
    op.execute("UPDATE revision_task_organs SET weight = attention_ml")
    op.drop_index("ix_revision_task_organs_organ_attention_ml", "revision_task_organs")
    op.create_index(
        "ix_revision_task_organs_organ_weight", "revision_task_organs", ["organ", "weight"]
    )
