"""Events for Prefect: detected, recorded, and sent by plain HTTP until they have arrived."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Final

import httpx
from atlas_core.errors import AtlasError
from atlas_core.review import OutgoingEvent
from starlette.concurrency import run_in_threadpool

from atlas_review.service import Review
from atlas_review.settings import ReviewSettings

SEND_TIMEOUT_S: Final = 10.0

QUEUE_RESOURCE: Final = "atlasloop.queue"

_log = logging.getLogger(__name__)


async def deliver_forever(review: Review) -> None:
    """Check the queue and deliver due events, again and again, until cancelled.

    No request waits for this, and none fails with it.
    """
    async with httpx.AsyncClient(timeout=SEND_TIMEOUT_S, trust_env=False) as client:
        while True:
            try:
                await deliver_due(review, client)
            except AtlasError as error:
                _log.warning("events wait: %s", error)
            except Exception:
                _log.exception("fault in the delivery of events")
            await asyncio.sleep(review.settings.event_interval_s)


async def deliver_due(review: Review, client: httpx.AsyncClient) -> None:
    """One round: record whether the queue is drained, and deliver the events that are due."""
    await run_in_threadpool(review.events.note_drained)
    if review.settings.prefect_api_url is None:
        return
    while (event := await run_in_threadpool(review.events.take_due)) is not None:
        reason = await send(client, review.settings, event)
        if reason is None:
            await run_in_threadpool(review.events.delivered, event)
            _log.info("event delivered", extra={"fields": {"event": event.name}})
        else:
            await run_in_threadpool(review.events.failed, event, reason)
            review.metrics.undelivered.inc()
            _log.warning("event not delivered: %s", reason)
            return


async def send(
    client: httpx.AsyncClient, settings: ReviewSettings, event: OutgoingEvent
) -> str | None:
    """Post `event` to Prefect. A repeated delivery has the same id and counts as one event there.

    Returns:
        Why it did not arrive, or None.
    """
    body = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{event.key}@{event.occurred_at.isoformat()}")),
        "event": event.name,
        "occurred": event.occurred_at.isoformat(),
        "resource": {"prefect.resource.id": QUEUE_RESOURCE},
        "payload": event.payload,
    }
    user, _, password = (
        settings.prefect_auth.get_secret_value() if settings.prefect_auth else ""
    ).partition(":")
    try:
        answer = await client.post(
            f"{settings.prefect_api_url}/events",
            json=[body],
            auth=httpx.BasicAuth(user, password) if user else httpx.USE_CLIENT_DEFAULT,
        )
    except httpx.HTTPError as error:
        return type(error).__name__
    return None if answer.is_success else f"HTTP {answer.status_code}"
