"""How much the models of an ensemble disagree about an organ, and the volume that they expect.

Scores from before have neither: the columns are empty there.

Revision ID: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("organ_scores", sa.Column("disagreement", sa.Float(53)))
    op.add_column("organ_scores", sa.Column("expected_ml", sa.Float(53)))
