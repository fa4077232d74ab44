"""Tells Prefect what happened in the review: recorded in the catalog, sent until it has arrived.

    python -m atlas_flows.event_delivery [SIGN_OF_LIFE]

The review service has no way to Prefect and no password of it, which would let it run code as the
flows: what it knows stands in the catalog, and is read there. On one machine `atlas_flows.serve`
does this beside the flows; a cluster, whose flows live in jobs, has a process for it, which touches
the file `SIGN_OF_LIFE` in every round. Both serve the metrics of the loop, too (`loop_metrics`).
"""

from __future__ import annotations

import logging
import sys
import threading
import uuid
from pathlib import Path
from typing import Any, Final

from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError
from atlas_core.json_logs import log_to_stderr
from atlas_core.review import OutgoingEvent, OutgoingEvents

from atlas_flows.loop_metrics import serve_loop_metrics
from atlas_flows.settings import Places

INTERVAL_S: Final = 5.0
"""Between checks of the queue, and between retries of a delivery."""

QUEUE_RESOURCE: Final = "atlasloop.queue"

_log = logging.getLogger(__name__)


def deliver_forever(catalog: Catalog, sign_of_life: Path | None = None) -> None:
    """Check the queue and deliver due events, again and again; Prefect's settings are in place.

    Args:
        sign_of_life: touched in every round.
    """
    events = OutgoingEvents(catalog)
    pause = threading.Event()
    while True:
        try:
            deliver_due(events)
        except AtlasError as error:
            _log.warning("events wait: %s", error)
        except Exception:
            _log.exception("fault in the delivery of events")
        if sign_of_life is not None:
            sign_of_life.touch()
        pause.wait(INTERVAL_S)


def deliver_due(events: OutgoingEvents) -> None:
    """One round: record whether the queue is drained, and deliver the events that are due."""
    events.note_drained()
    while (event := events.take_due()) is not None:
        reason = send(event)
        if reason is not None:
            events.failed(event, reason)
            _log.warning("event not delivered: %s", reason)
            return
        events.delivered(event)
        _log.info("event delivered", extra={"fields": {"event": event.name}})


def send(event: OutgoingEvent) -> str | None:
    """Give `event` to Prefect. A repeated delivery has the same id and counts as one event there.

    Returns:
        Why it did not arrive, or None.
    """
    # Prefect reads its settings when it is imported.
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[_as_prefect_knows_it(event)])
    except httpx.HTTPStatusError as error:
        return f"HTTP {error.response.status_code}"
    except httpx.HTTPError as error:
        return type(error).__name__
    return None


def _as_prefect_knows_it(event: OutgoingEvent) -> dict[str, Any]:
    occasion = f"{event.key}@{event.occurred_at.isoformat()}"
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, occasion)),
        "event": event.name,
        "occurred": event.occurred_at.isoformat(),
        "resource": {"prefect.resource.id": QUEUE_RESOURCE},
        "payload": event.payload,
    }


def main(arguments: list[str]) -> int:
    """Deliver until stopped by a signal."""
    log_to_stderr("INFO")
    places = Places.read()
    places.enter_prefect()
    with Catalog.open(places.catalog_url) as catalog:
        places.grant_rights(catalog)  # no migration ran before, where the database came up with us
        serve_loop_metrics(places, catalog)
        deliver_forever(catalog, *map(Path, arguments[:1]))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except AtlasError as error:
        sys.exit(f"error: {error}")
