"""Assembled label maps in the catalog, and what assembly must know of many cases at once.

Rows are only ever added: the newest of a case counts, and an older one says what was assembled
before. Everything here takes many cases in one query, because an atlas has thousands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core import catalog_tables as t
from atlas_core.assembly_records import Assembly
from atlas_core.catalog import Catalog
from atlas_core.errors import InvalidInput, NotFound
from atlas_core.model_spec import ModelRef
from atlas_core.records import Case, Label, Reading

CASES_PER_QUERY: Final = 200
"""Cases that are looked up at once: their labels are a few thousand rows."""

T = TypeVar("T")

_a = t.assemblies.c


class Assemblies:
    """The assembled maps in a catalog. Safe to share between threads."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def record(self, assembly: Assembly) -> None:
        """Make `assembly` the one that counts for its case.

        Raises:
            NotFound: the case was deleted meanwhile.
        """
        row = assembly.model_dump(mode="json") | {"created_at": assembly.created_at}
        with self._catalog.transaction(write=True) as connection:
            known = sa.select(t.cases.c.id).where(t.cases.c.id == assembly.case_id)
            if connection.scalar(known) is None:
                raise NotFound("no such case in the catalog", case=assembly.case_id)
            connection.execute(sa.insert(t.assemblies).values(row))

    def current(self, case_id: str) -> Assembly | None:
        """The assembly that counts for a case; None where it was never assembled."""
        return self.of_cases([case_id]).get(case_id)

    def of_cases(self, case_ids: Collection[str]) -> dict[str, Assembly]:
        """The assemblies that count, by case id; cases without any are left out."""
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


def chunks(cases: Sequence[T], size: int = CASES_PER_QUERY) -> Iterator[Sequence[T]]:
    """`cases` in pieces that fit one query."""
    for start in range(0, len(cases), size):
        yield cases[start : start + size]


def cases_by_id(catalog: Catalog, case_ids: Sequence[str]) -> dict[str, Case]:
    """The cases of one chunk; those that are not in the catalog are left out."""
    query = sa.select(t.cases).where(t.cases.c.id.in_(case_ids))
    with catalog.transaction(write=False) as connection:
        rows = list(connection.execute(query).mappings())
    return {row["id"]: Case.model_validate(dict(row)) for row in rows}


def labels_by_case(catalog: Catalog, case_ids: Sequence[str]) -> dict[str, list[Label]]:
    """All labels of the cases of one chunk, oldest first."""
    query = sa.select(t.labels).where(t.labels.c.case_id.in_(case_ids)).order_by(t.labels.c.id)
    found: dict[str, list[Label]] = {case_id: [] for case_id in case_ids}
    with catalog.transaction(write=False) as connection:
        for row in connection.execute(query).mappings():
            values = {name: row[name] for name in Label.model_fields}
            found[row["case_id"]].append(Label.model_validate(values))
    return found


def newest_ensembles(
    catalog: Catalog, case_ids: Sequence[str], reading: Reading, models: Sequence[str] = ()
) -> dict[str, str]:
    """The ensemble of the newest score of each case of one chunk, under `reading`.

    Args:
        models: NAME (any version) or NAME@T; only ensembles of exactly these models count. Empty:
            all do.

    Raises:
        InvalidInput: a malformed model, or one that is named twice.
    """
    wanted = _wanted(models)
    s = t.scores.c
    query = (
        sa.select(s.case_id, s.ensemble)
        .where(s.reading == reading.value, s.case_id.in_(case_ids))
        # Of equally new ones the first by name, as the ranking has it.
        .order_by(s.created_at, s.ensemble.desc())
    )
    with catalog.transaction(write=False) as connection:
        rows = list(connection.execute(query))
        fitting = {
            ensemble: _fits(connection, ensemble, wanted) for ensemble in {r.ensemble for r in rows}
        }
    return {row.case_id: row.ensemble for row in rows if fitting[row.ensemble]}


def _wanted(models: Sequence[str]) -> dict[str, int | None]:
    wanted = dict(ModelRef.parse(text) for text in models)
    if len(wanted) != len(models):
        raise InvalidInput("an ensemble holds one version per model", got=", ".join(models))
    return wanted


def _fits(connection: Connection, ensemble: str, wanted: dict[str, int | None]) -> bool:
    if not wanted:
        return True
    m = t.ensemble_models.c
    rows = connection.execute(sa.select(m.name, m.version).where(m.ensemble == ensemble)).all()
    return {row.name for row in rows} == set(wanted) and all(
        wanted[row.name] in (None, row.version) for row in rows
    )


def _assembly(row: sa.RowMapping) -> Assembly:
    return Assembly.model_validate({name: row[name] for name in Assembly.model_fields})
