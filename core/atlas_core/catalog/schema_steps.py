"""The steps between versions of the catalog's schema, up and down, by Alembic."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from atlas_core.catalog import tables as t
from atlas_core.errors import ConfigurationError, Conflict, NotFound


def upgrade(connection: Connection) -> None:
    """To the newest."""
    command.upgrade(_alembic_config(connection), "head")


def downgrade(connection: Connection, revision: str, *, accept_loss: bool) -> dict[str, int]:
    """To an earlier one; see `Database.step_down`. Where it raises, the caller rolls back."""
    config = _alembic_config(connection)
    steps = list(ScriptDirectory.from_config(config).walk_revisions())  # the newest first
    known = [step.revision for step in steps]
    if revision not in known[1:]:
        raise NotFound(
            "no earlier schema of this number", expected=", ".join(known[1:]), got=revision
        )
    for step in steps[: known.index(revision)]:
        if not hasattr(step.module, "downgrade"):
            raise ConfigurationError(
                f"the schema cannot go back below {step.revision}",
                got=revision,
                remedy="give the earlier version an empty database and restore its backup there",
            )
    before = _row_counts(connection)
    command.downgrade(config, revision)
    after = _row_counts(connection)
    lost = {name: rows - after.get(name, 0) for name, rows in sorted(before.items())}
    lost = {name: rows for name, rows in lost.items() if rows > 0}
    if lost and not accept_loss:
        raise Conflict(
            f"schema {revision} has no place for all that the catalog holds",
            got=", ".join(f"{rows} rows of {name}" for name, rows in lost.items()),
            remedy="make a backup, then say that they may go (--accept-loss)",
        )
    return lost


def _row_counts(connection: Connection) -> dict[str, int]:
    """Rows by table, of our tables that are there."""
    there = set(sa.inspect(connection).get_table_names())
    return {
        table.name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
        for table in t.metadata.sorted_tables
        if table.name in there
    }


def _alembic_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config
