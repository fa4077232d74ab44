"""Events for the orchestrator: recorded once, delivered at least once, also after long outages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from atlas_core.catalog import Catalog, insert_new, now
from atlas_core.catalog import tables as t
from atlas_core.review.clock import Clock
from atlas_core.review.records import PENDING

QUEUE_DRAINED: Final = "atlasloop.queue.drained"
"""No task is open, leased or in second reading any more."""

FIRST_PAUSE: Final = timedelta(seconds=2)
LONGEST_PAUSE: Final = timedelta(minutes=5)

DELIVERY_LEASE: Final = timedelta(seconds=30)
"""One replica delivers; if it dies meanwhile, another tries after this time."""

_e = t.outgoing_events.c
_k = t.revision_tasks.c


@dataclass(frozen=True)
class OutgoingEvent:
    """One event.

    Attributes:
        id: of its row.
        key: identifies the occurrence, so that two replicas record it once.
        name: as the orchestrator knows it.
        payload: JSON.
        occurred_at: when.
        attempts: how often its delivery was tried, this one included.
    """

    id: int
    key: str
    name: str
    payload: dict[str, Any]
    occurred_at: datetime
    attempts: int


class OutgoingEvents:
    """The events in a catalog. Safe to share between threads and processes."""

    def __init__(self, catalog: Catalog, *, clock: Clock = now) -> None:
        self._catalog = catalog
        self._now = clock

    def note_drained(self) -> bool:
        """Record that the queue is empty, once for each time that it has become so.

        The queue is inspected from outside, not by the transaction that finishes a task: of two
        that finish the last two tasks at once, each still sees the other's.

        Returns:
            True if it was recorded now.
        """
        with self._catalog.transaction(write=False) as connection:
            last = connection.scalar(sa.select(sa.func.max(t.revision_work.c.id)))
            pending = sa.select(_k.id).where(_k.state.in_([s.value for s in PENDING])).limit(1)
            if last is None or connection.scalar(pending) is not None:
                return False
            states = sa.select(_k.state, sa.func.count()).group_by(_k.state)
            counts = {row[0]: row[1] for row in connection.execute(states)}
            key = f"{QUEUE_DRAINED}/{last}"
            known = connection.scalar(sa.select(_e.id).where(_e.key == key))
        if known is not None:
            return False
        now = self._now()
        row = {
            "key": key,
            "name": QUEUE_DRAINED,
            "payload": {"tasks": counts},
            "occurred_at": now,
            "attempts": 0,
            "next_attempt_at": now,
            "last_error": "",
        }
        with self._catalog.transaction(write=True) as connection:
            return bool(insert_new(connection, t.outgoing_events, [row]))

    def take_due(self) -> OutgoingEvent | None:
        """The oldest event that is due, leased to the caller while it is delivered."""
        now = self._now()
        due = (
            sa.select(_e.id)
            .where(_e.delivered_at.is_(None), _e.next_attempt_at <= now)
            .order_by(_e.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        query = (
            sa.update(t.outgoing_events)
            .where(_e.id == due.scalar_subquery())
            .values(attempts=_e.attempts + 1, next_attempt_at=now + DELIVERY_LEASE)
            .returning(_e.id, _e.key, _e.name, _e.payload, _e.occurred_at, _e.attempts)
        )
        with self._catalog.transaction(write=True) as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else OutgoingEvent(**row)

    def delivered(self, event: OutgoingEvent) -> None:
        """Record that `event` has arrived."""
        self._set(event, delivered_at=self._now(), last_error="")

    def failed(self, event: OutgoingEvent, reason: str) -> None:
        """Record that `event` has not arrived; it is retried indefinitely, at growing intervals."""
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(event.attempts - 1, 16))
        self._set(event, next_attempt_at=self._now() + pause, last_error=reason)

    def _set(self, event: OutgoingEvent, **values: Any) -> None:
        with self._catalog.transaction(write=True) as connection:
            connection.execute(
                sa.update(t.outgoing_events).where(_e.id == event.id).values(**values)
            )
