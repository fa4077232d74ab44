"""What copies of one scan share, so that they are recognised.

Cases from before have none: the column is empty there.

Revision ID: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision: str | None = "0013"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("cases", sa.Column("fingerprint", sa.String(64)))
    op.create_index("ix_cases_fingerprint", "cases", ["fingerprint"])


def downgrade() -> None:
    op.drop_index("ix_cases_fingerprint", "cases")
    op.drop_column("cases", "fingerprint")
