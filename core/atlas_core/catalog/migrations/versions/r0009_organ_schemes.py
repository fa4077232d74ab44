"""Which organs an atlas has. One from before has the nine that were built in then, and a new one
begins with them: it can choose others until its first case is there.

Revision ID: 0009
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op
from atlas_core.catalog.tables import UtcDateTime
from atlas_core.organs import read_scheme

revision = "0009"
down_revision: str | None = "0008"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    schemes = op.create_table(
        "organ_schemes",
        sa.Column("id", sa.Integer),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("organs", sa.JSON, nullable=False),
        sa.Column("recorded_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_organ_schemes"),
    )
    nine = read_scheme("abdomen_atlas_1_0")
    content = nine.model_dump(mode="json", exclude_defaults=True)
    row = content | {"sha256": nine.digest, "recorded_at": datetime.now(UTC)}
    op.bulk_insert(schemes, [row])
