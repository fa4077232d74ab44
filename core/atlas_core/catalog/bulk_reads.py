"""Queries for many cases at once, because an atlas has thousands."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import tables as t
from atlas_core.catalog.catalog import Catalog
from atlas_core.model_spec import parse_ensemble
from atlas_core.records import Case, Label, Reading


def cases_by_id(catalog: Catalog, case_ids: Sequence[str]) -> dict[str, Case]:
    """The cases with these ids (at most one chunk); unknown ones are left out."""
    query = sa.select(t.cases).where(t.cases.c.id.in_(case_ids))
    with catalog.transaction(write=False) as connection:
        rows = list(connection.execute(query).mappings())
    return {row["id"]: Case.model_validate(dict(row)) for row in rows}


def labels_by_case(catalog: Catalog, case_ids: Sequence[str]) -> dict[str, list[Label]]:
    """All labels of the cases with these ids (at most one chunk), oldest first."""
    query = sa.select(t.labels).where(t.labels.c.case_id.in_(case_ids)).order_by(t.labels.c.id)
    found: dict[str, list[Label]] = {case_id: [] for case_id in case_ids}
    with catalog.transaction(write=False) as connection:
        for row in connection.execute(query).mappings():
            values = {name: row[name] for name in Label.model_fields}
            found[row["case_id"]].append(Label.model_validate(values))
    return found


def newest_scores(
    catalog: Catalog, case_ids: Sequence[str], reading: Reading, models: Sequence[str] = ()
) -> dict[str, tuple[str, int]]:
    """Ensemble, and number of the result, of the newest score of each case (at most one chunk),
    under `reading`.

    Args:
        models: NAME (any version) or NAME@T; only ensembles of exactly these models count. Empty:
            every ensemble counts.

    Raises:
        InvalidInput: see `parse_ensemble`.
    """
    wanted = parse_ensemble(models)
    s = t.scores.c
    query = (
        sa.select(s.case_id, s.ensemble, s.number)
        .where(s.reading == reading.value, s.case_id.in_(case_ids))
        # Of equally new ones the first by name, as in `Catalog.ranking`.
        .order_by(s.created_at, s.ensemble.desc())
    )
    with catalog.transaction(write=False) as connection:
        rows = list(connection.execute(query))
        fitting = {
            ensemble: _fits(connection, ensemble, wanted) for ensemble in {r.ensemble for r in rows}
        }
    return {row.case_id: (row.ensemble, row.number) for row in rows if fitting[row.ensemble]}


def _fits(connection: Connection, ensemble: str, wanted: dict[str, int | None]) -> bool:
    if not wanted:
        return True
    m = t.ensemble_models.c
    rows = connection.execute(sa.select(m.name, m.version).where(m.ensemble == ensemble)).all()
    return {row.name for row in rows} == set(wanted) and all(
        wanted[row.name] in (None, row.version) for row in rows
    )
