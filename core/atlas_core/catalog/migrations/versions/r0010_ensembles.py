"""Ensembles by name, and their history, which only grows.

Revision ID: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None

_REFUSAL = "the history of ensembles only grows"


def upgrade() -> None:
    op.create_table(
        "ensemble_changes",
        sa.Column("revision", sa.Integer),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("ensemble", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("action", sa.String(63), nullable=False),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("why", sa.String, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("revision", name="pk_ensemble_changes"),
    )
    op.create_index("ix_ensemble_changes_name", "ensemble_changes", ["name"])
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER ensemble_changes_refuse_{change.lower()} BEFORE {change} "
                f"ON ensemble_changes BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION ensemble_changes_only_grow() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN RAISE EXCEPTION '{_REFUSAL}'; END$$"
    )
    op.execute(
        "CREATE TRIGGER ensemble_changes_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE "
        "ON ensemble_changes FOR EACH STATEMENT EXECUTE FUNCTION ensemble_changes_only_grow()"
    )
