"""Events of the loop for Prefect's automations: notifications, and what a site builds on them."""

from __future__ import annotations

import uuid
from enum import StrEnum
from typing import Any

from prefect.events import emit_event


class Event(StrEnum):
    """What people or machines may want to know; `event_delivery` reports the drained queue."""

    QUEUE_OPEN = "atlasloop.queue.open"
    ITERATION_FINISHED = "atlasloop.iteration.finished"
    PROMOTION_REFUSED = "atlasloop.promotion.refused"
    TRAINING_REFUSED = "atlasloop.training.refused"


def emit(event: Event, *, subject: str, occasion: str, **payload: Any) -> None:
    """Send an event to Prefect's server; sent again after a run was killed, it has the same id.

    Args:
        subject: what it is about: ``queue``, ``iteration.3``.
        occasion: distinguishes this occurrence from others of its kind.
        payload: JSON; no patient data.
    """
    emit_event(
        event=event.value,
        resource={"prefect.resource.id": f"atlasloop.{subject}"},
        payload=payload,
        id=uuid.uuid5(uuid.NAMESPACE_URL, f"{event.value}/{subject}/{occasion}"),
    )
