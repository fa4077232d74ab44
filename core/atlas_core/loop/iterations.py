"""The iterations of the loop in the catalog: one at a time is open, and each is numbered t."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import Catalog, insert_new
from atlas_core.catalog import tables as t
from atlas_core.errors import Conflict, InvalidInput, NotFound
from atlas_core.records import Iteration, IterationState

_i = t.iterations.c


class Iterations:
    """The iterations in a catalog. Safe to share between threads."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def start(self, parameters: Mapping[str, object]) -> Iteration:
        """Open the next iteration: its t is one more than the last.

        Raises:
            Conflict: the last one is still open.
        """
        with self._catalog.transaction(write=True) as connection:
            last = _last(connection)
            if last is not None and last.state is IterationState.OPEN:
                raise Conflict(
                    f"iteration {last.t} is still open", remedy="finish it before the next one"
                )
            opened = Iteration(
                t=0 if last is None else last.t + 1,
                parameters=dict(parameters),
                started_at=datetime.now(UTC),
            )
            row = opened.model_dump(mode="json") | {"started_at": opened.started_at}
            if not insert_new(connection, t.iterations, [row]):
                raise Conflict(f"iteration {opened.t} was opened by somebody else just now")
            return opened

    def finish(self, number: int, state: IterationState) -> Iteration:
        """Close an open iteration as done or failed.

        Raises:
            NotFound: there is no such iteration.
            Conflict: it is closed already.
            InvalidInput: `state` is "open".
        """
        if state is IterationState.OPEN:
            raise InvalidInput("an iteration ends as done or failed", got=state.value)
        with self._catalog.transaction(write=True) as connection:
            closed = connection.execute(
                sa.update(t.iterations)
                .where(_i.t == number, _i.state == IterationState.OPEN.value)
                .values(state=state.value, finished_at=datetime.now(UTC))
            ).rowcount
            query = sa.select(t.iterations).where(_i.t == number)
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise NotFound(f"no iteration {number} in the catalog")
        if not closed:
            raise Conflict(f"iteration {number} is closed already", got=row["state"])
        return Iteration.model_validate(dict(row))

    def all(self) -> list[Iteration]:
        """Every iteration, first to last."""
        with self._catalog.transaction(write=False) as connection:
            rows = connection.execute(sa.select(t.iterations).order_by(_i.t)).mappings()
            return [Iteration.model_validate(dict(row)) for row in rows]


def _last(connection: Connection) -> Iteration | None:
    query = sa.select(t.iterations).order_by(_i.t.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Iteration.model_validate(dict(row))
