"""What is left to do in an atlas, in a few numbers: asked for every half minute by what watches."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import sqlalchemy as sa

from atlas_core.catalog import Catalog, now
from atlas_core.catalog import tables as t
from atlas_core.records import Reading
from atlas_core.review.clock import Clock
from atlas_core.review.records import PENDING

SOON: Final = timedelta(minutes=2)
"""A lease that ends within this time is about to run out: pages renew theirs long before."""

_k = t.revision_tasks.c


@dataclass(frozen=True)
class Backlog:
    """Work that waits, and that was done.

    Attributes:
        cases: of the atlas.
        scored: reading → cases with a score of the ensemble whose scores count.
        leases: cases that annotators hold.
        leases_ending: of these, those that are about to run out.
        events: of the review that Prefect was not told yet.
    """

    cases: int
    scored: dict[Reading, int]
    leases: int
    leases_ending: int
    events: int


def count_backlog(catalog: Catalog, *, clock: Clock = now) -> Backlog:
    """The numbers of this moment; five queries, each answered from an index or a small table.

    Raises:
        Unavailable: the database does not answer.
    """
    ensembles = {reading: catalog.latest_ensemble(reading) for reading in Reading}
    at = clock()
    held = sa.and_(_k.state.in_([s.value for s in PENDING]), _k.lease_expires_at > at)
    s, e = t.scores.c, t.outgoing_events.c
    with catalog.transaction(write=False) as connection:

        def count(table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
            query = sa.select(sa.func.count()).select_from(table).where(*where)
            return int(connection.scalar(query) or 0)

        return Backlog(
            cases=count(t.cases),
            scored={
                reading: count(t.scores, s.reading == reading.value, s.ensemble == ensemble)
                for reading, ensemble in ensembles.items()
                if ensemble is not None
            },
            leases=count(t.revision_tasks, held),
            leases_ending=count(t.revision_tasks, held, _k.lease_expires_at <= at + SOON),
            events=count(t.outgoing_events, e.delivered_at.is_(None)),
        )
