"""How many models of an ensemble know an organ.

Scores from before do not say: the column is empty there. All models of those ensembles knew all
organs.

Revision ID: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision: str | None = "0010"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("organ_scores", sa.Column("voices", sa.Integer))
