"""UIDs that DICOM gives scans, as checksums, so that a scan is recognised by them too.

Cases from before get theirs when their files are imported again.

Revision ID: 0018
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision: str | None = "0017"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "case_uids",
        sa.Column("case_id", sa.String(100), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("uid_sha256", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("case_id", "role", "uid_sha256", name="pk_case_uids"),
        sa.ForeignKeyConstraint(
            ["case_id"], ["cases.id"], name="fk_case_uids_case_id_cases", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_case_uids_uid_sha256", "case_uids", ["uid_sha256"])
