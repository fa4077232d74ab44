"""Ensembles in the catalog: how each is now, which one is in use, and every change there was.

Rows are only added. One transaction holds a whole change, so that there is always one ensemble in
use, or none yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import tables as t
from atlas_core.catalog.database import Database
from atlas_core.ensembles import (
    SAID_BY_MODELS,
    Ensemble,
    EnsembleChange,
    EnsembleDescription,
    EnsembleState,
)
from atlas_core.errors import NotFound
from atlas_core.model_spec import ModelRef

LOADED = (EnsembleState.IN_USE, EnsembleState.LOADED)
"""States in which the model server holds an ensemble."""


def current_ensembles(catalog: Database) -> list[EnsembleChange]:
    """Every ensemble as it is now, by name."""
    with catalog.transaction(write=False) as connection:
        return _current(connection)


def ensemble_history(catalog: Database, name: str | None = None) -> list[EnsembleChange]:
    """All changes of one ensemble, or of all, oldest first."""
    with catalog.transaction(write=False) as connection:
        return _changes(connection, name)


def find_ensemble(catalog: Database, name: str | None = None) -> EnsembleChange:
    """The ensemble of that name as it is now; None: the one in use.

    Raises:
        NotFound: there is none.
    """
    known = current_ensembles(catalog)
    for change in known:
        if change.ensemble.name == name or (name is None and _in_use(change)):
            return change
    raise NotFound(
        "no ensemble is in use" if name is None else f"there is no ensemble {name}",
        expected=", ".join(change.ensemble.name for change in known) or "none yet",
        remedy="see `atlasloop ensemble list`",
    )


def key_in_use(connection: Connection) -> str | None:
    """`Ensemble.key` of the one in use; None: none is."""
    return next((c.ensemble.key for c in _current(connection) if _in_use(c)), None)


def record_ensemble(
    catalog: Database,
    ensemble: Ensemble,
    state: EnsembleState,
    *,
    action: str,
    who: str,
    why: str = "",
) -> None:
    """Record an ensemble as it is from now on. One that comes into use takes the place of the one
    before, which is idle then."""
    with _changing(catalog) as connection:
        if state is EnsembleState.IN_USE:
            for before in _current(connection):
                if _in_use(before) and before.ensemble.name != ensemble.name:
                    said = f"{ensemble.name} came into use"
                    _add(connection, before.ensemble, EnsembleState.IDLE, said, who, why)
        _add(connection, ensemble, state, action, who, why)


def record_versions(
    catalog: Database, models: Sequence[ModelRef], *, action: str, who: str, why: str = ""
) -> None:
    """Record that these versions serve now, in every ensemble that has the models; where they stand
    already nothing is added."""
    versions = {model.name: model for model in models}
    with _changing(catalog) as connection:
        for change in _current(connection):
            members = tuple(
                member.model_copy(update={"model": versions.get(member.model.name, member.model)})
                for member in change.ensemble.members
            )
            if members != change.ensemble.members:
                switched = change.ensemble.model_copy(update={"members": members})
                _add(connection, switched, change.state, action, who, why)


def described(catalog: Database) -> dict[str, EnsembleDescription]:
    """What the model server is to say of the ensembles that it holds; empty as long as nobody has
    made or changed one: the models in service are the default ensemble then."""
    with catalog.transaction(write=False) as connection:
        known, current = _changes(connection), _current(connection)
    if all(change.action in SAID_BY_MODELS for change in known):
        return {}
    # A promotion changes nothing of what is said, so that only its own model is loaded again.
    said = {c.ensemble.name: c.revision for c in reversed(known)}
    said |= {c.ensemble.name: c.revision for c in known if c.action not in SAID_BY_MODELS}
    return {
        change.ensemble.name: EnsembleDescription.of(change, said[change.ensemble.name])
        for change in current
        if change.state in LOADED
    }


@contextmanager
def _changing(catalog: Database) -> Iterator[Connection]:
    """A transaction that reads what it changes; changes wait for one another."""
    with catalog.transaction(write=True) as connection:
        if connection.dialect.name == "postgresql":
            table = t.ensemble_changes.name
            connection.execute(sa.text(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))
        yield connection


def _in_use(change: EnsembleChange) -> bool:
    return change.state is EnsembleState.IN_USE


def _current(connection: Connection) -> list[EnsembleChange]:
    newest = {change.ensemble.name: change for change in _changes(connection)}
    return [
        newest[name] for name in sorted(newest) if newest[name].state is not EnsembleState.REMOVED
    ]


def _changes(connection: Connection, name: str | None = None) -> list[EnsembleChange]:
    columns = t.ensemble_changes.c
    query = sa.select(t.ensemble_changes).order_by(columns.revision)
    if name is not None:
        query = query.where(columns.name == name)
    return [
        EnsembleChange.model_validate(_without_name(row))
        for row in connection.execute(query).mappings()
    ]


def _without_name(row: sa.RowMapping) -> dict[str, object]:
    return {key: value for key, value in row.items() if key != "name"}


def _add(
    connection: Connection,
    ensemble: Ensemble,
    state: EnsembleState,
    action: str,
    who: str,
    why: str,
) -> None:
    connection.execute(
        sa.insert(t.ensemble_changes).values(
            name=ensemble.name,
            ensemble=ensemble.model_dump(mode="json"),
            state=state.value,
            action=action,
            who=who,
            why=why,
            created_at=datetime.now(UTC),
        )
    )
