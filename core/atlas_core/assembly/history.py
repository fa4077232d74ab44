"""Records of assembled label maps in the catalog.

Rows are only added: the newest of a case is current, older ones are its history.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from atlas_core.assembly.records import Assembly
from atlas_core.catalog import Catalog, chunks
from atlas_core.catalog import tables as t
from atlas_core.errors import NotFound

_a = t.assemblies.c


class Assemblies:
    """The assembled maps in a catalog. Safe to share between threads."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def record(self, assembly: Assembly) -> None:
        """Make `assembly` the current one of its case.

        Raises:
            NotFound: the case has been deleted in the meantime.
        """
        row = assembly.model_dump(mode="json") | {"created_at": assembly.created_at}
        with self._catalog.transaction(write=True) as connection:
            known = sa.select(t.cases.c.id).where(t.cases.c.id == assembly.case_id)
            if connection.scalar(known) is None:
                raise NotFound("no such case in the catalog", case=assembly.case_id)
            connection.execute(sa.insert(t.assemblies).values(row))

    def current(self, case_id: str) -> Assembly | None:
        """The current assembly of a case; None if it was never assembled."""
        return self.of_cases([case_id]).get(case_id)

    def of_cases(self, case_ids: Collection[str]) -> dict[str, Assembly]:
        """The current assemblies by case id; cases without any are left out."""
        found: dict[str, Assembly] = {}
        for chunk in chunks(sorted(case_ids)):
            newest = sa.select(sa.func.max(_a.id)).where(_a.case_id.in_(chunk)).group_by(_a.case_id)
            query = sa.select(t.assemblies).where(_a.id.in_(newest))
            with self._catalog.transaction(write=False) as connection:
                rows = list(connection.execute(query).mappings())
            found.update({row["case_id"]: _assembly(row) for row in rows})
        return found

    def history(self, case_id: str) -> list[Assembly]:
        """Every assembly of a case, oldest first."""
        query = sa.select(t.assemblies).where(_a.case_id == case_id).order_by(_a.id)
        with self._catalog.transaction(write=False) as connection:
            return [_assembly(row) for row in connection.execute(query).mappings()]


def _assembly(row: sa.RowMapping) -> Assembly:
    return Assembly.model_validate({name: row[name] for name in Assembly.model_fields})
