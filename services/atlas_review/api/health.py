"""Liveness and readiness."""

from __future__ import annotations

from atlas_core.errors import ConfigurationError, Unavailable
from atlas_core.review import TaskFilter
from fastapi import APIRouter
from pydantic import BaseModel

from atlas_review.api.access import TheReview
from atlas_review.service import require_same_organs

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """State of the service."""

    status: str


@router.get("/healthz")
async def alive() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz")
def ready(review: TheReview) -> Health:
    """The database and the case store can be reached, and the atlas has our organs."""
    review.queue.counts(TaskFilter())
    try:
        require_same_organs(review.settings, review.catalog)
    except ConfigurationError as error:
        # The atlas was extended while this process ran: no fault of ours, and over with a restart.
        raise Unavailable(
            error.what, expected=error.expected, got=error.got, remedy=error.remedy
        ) from None
    if not review.store.root.is_dir():
        raise Unavailable("the case store is missing")
    return Health(status="ok")
