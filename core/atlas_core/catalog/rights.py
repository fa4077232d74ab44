"""What the role of the review service may do in a PostgreSQL catalog, table by table.

The flows' role owns the tables. The review service faces people and their files; taken over, it
shall neither drop a table, nor rewrite what is on record, nor speak to the orchestrator.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import tables as t
from atlas_core.catalog.database import Database
from atlas_core.errors import ConfigurationError

HIDDEN: Final = frozenset({t.outgoing_events.name, t.case_uids.name})
"""Not even read by the review service; it reads all others."""

WRITES: Final[Mapping[str, str]] = MappingProxyType(
    {
        t.audit_log.name: "INSERT",
        t.labels.name: "INSERT",
        # A proposal that is accepted is told its label.
        t.label_submissions.name: "INSERT, UPDATE (label_id)",
        t.revision_work.name: "INSERT",
        t.revision_tasks.name: "INSERT, UPDATE",
        t.revision_task_organs.name: "INSERT, UPDATE",
        t.revision_drafts.name: "INSERT, DELETE",
        t.revision_comments.name: "INSERT",
        t.case_flags.name: "INSERT, DELETE",
        t.sign_ins.name: "INSERT, DELETE",
        # Versions of one case are numbered under a lock of its row, which PostgreSQL gives only to
        # who may update some column.
        t.cases.name: "UPDATE (imported_at)",
    }
)
"""Rights beyond reading, by table; no other table is written by the review service."""


def grant_review_rights(catalog: Database, role: str) -> None:
    """Give `role` exactly these rights, whatever it had before; as the tables' owner.

    Raises:
        ConfigurationError: not PostgreSQL, or there is no such role.
    """
    if catalog.engine.dialect.name != "postgresql":
        raise ConfigurationError(
            "only PostgreSQL has roles", expected="a catalog in PostgreSQL", got=f"role {role}"
        )
    with catalog.migrating() as connection:
        _require_role(connection, role)
        quote = connection.dialect.identifier_preparer.quote
        quoted = quote(role)
        # As for a database that a backup was restored into.
        database = str(connection.scalar(sa.select(sa.func.current_database())))
        _execute(connection, f"GRANT CONNECT ON DATABASE {quote(database)} TO {quoted}")
        for table in (*sorted(t.metadata.tables), t.VERSION_TABLE):
            _execute(connection, f"REVOKE ALL ON {table} FROM {quoted}")
            if table not in HIDDEN:
                _execute(connection, f"GRANT SELECT ON {table} TO {quoted}")
        for table, rights in WRITES.items():
            _execute(connection, f"GRANT {rights} ON {table} TO {quoted}")
            sequence = _sequence(connection, table) if rights.startswith("INSERT") else None
            if sequence is not None:
                _execute(connection, f"GRANT USAGE ON SEQUENCE {sequence} TO {quoted}")


def _require_role(connection: Connection, role: str) -> None:
    query = sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role")
    if connection.scalar(query, {"role": role}) is None:
        raise ConfigurationError(
            "the database has no such role",
            expected="the role of the review service",
            got=role,
            remedy="make it as deploy/compose/databases.sh does, or leave "
            "ATLASLOOP_REVIEW_ROLE empty",
        )


def _sequence(connection: Connection, table: str) -> str | None:
    """What numbers the rows of `table`, if anything does."""
    columns = t.metadata.tables[table].columns
    if "id" not in columns:
        return None
    query = sa.text("SELECT pg_get_serial_sequence(:table, 'id')")
    found: str | None = connection.scalar(query, {"table": table})
    return found


def _execute(connection: Connection, statement: str) -> None:
    connection.execute(sa.text(statement))
