"""The audit log: who did what to which case, in the transaction that does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import Catalog
from atlas_core.catalog import tables as t
from atlas_core.review.records import AuditEntry

_INSERT: Final = sa.insert(t.audit_log)


def note(connection: Connection, *entries: AuditEntry) -> None:
    """Add `entries` within the transaction of `connection`."""
    if entries:
        connection.execute(_INSERT, [entry.model_dump() for entry in entries])


def task_history(connection: Connection, task_id: int) -> list[AuditEntry]:
    """The entries of one task, oldest first."""
    a = t.audit_log.c
    query = sa.select(t.audit_log).where(a.task_id == task_id).order_by(a.id)
    return [_entry(row) for row in connection.execute(query).mappings()]


class AuditLog:
    """Reads and writes the log in transactions of its own."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def add(
        self,
        at: datetime,
        who: str,
        action: str,
        detail: Mapping[str, Any] | None = None,
        *,
        case_id: str | None = None,
    ) -> None:
        """Add an entry for what changes no case, such as a sign-in or a download."""
        entry = AuditEntry(
            at=at, who=who, action=action, case_id=case_id, detail=dict(detail or {})
        )
        with self._catalog.transaction(write=True) as connection:
            note(connection, entry)

    def page(self, offset: int, limit: int) -> tuple[int, Sequence[AuditEntry]]:
        """Number of entries, and `limit` of them from `offset` on, newest first."""
        query = sa.select(t.audit_log).order_by(t.audit_log.c.id.desc()).offset(offset).limit(limit)
        with self._catalog.transaction(write=False) as connection:
            total = connection.scalar(sa.select(sa.func.count()).select_from(t.audit_log)) or 0
            return total, [_entry(row) for row in connection.execute(query).mappings()]


def _entry(row: sa.RowMapping) -> AuditEntry:
    return AuditEntry.model_validate({name: row[name] for name in AuditEntry.model_fields})
