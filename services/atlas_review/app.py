"""The HTTP application: routes, errors, limits, headers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

import anyio
from fastapi import FastAPI

from atlas_review import (
    case_routes,
    events,
    health_routes,
    label_routes,
    monai_routes,
    oidc,
    organ_routes,
    page,
    problems,
    queue_routes,
    session_routes,
    statistics_routes,
)
from atlas_review.body_limit import BodyLimit
from atlas_review.client_address import ClientAddress
from atlas_review.metrics import Measured
from atlas_review.service import Review
from atlas_review.settings import ReviewSettings
from atlas_review.versions_view import API


def create_app(settings: ReviewSettings | None = None) -> FastAPI:
    """The application; it connects when it is started and closes when it is stopped."""
    settings = settings or ReviewSettings()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        review = Review.open(settings)
        # As many as there are connections to the database: more would only wait for one.
        anyio.to_thread.current_default_thread_limiter().total_tokens = 15
        app.state.review = review
        watching = asyncio.create_task(events.watch(review))
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            review.catalog.close()

    app = FastAPI(
        title="Atlas Loop review",
        version=version("atlasloop"),
        description="The revision queue, the labels and the attention maps of an atlas.",
        lifespan=lifespan,
        responses=problems.RESPONSES,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        openapi_url=f"{API}/openapi.json",
    )
    problems.install(app)
    for module in (
        session_routes,
        organ_routes,
        queue_routes,
        case_routes,
        label_routes,
        statistics_routes,
    ):
        app.include_router(module.router, prefix=API)
    app.include_router(monai_routes.router)
    app.include_router(health_routes.router)
    oidc.install(app, settings)
    page.install(app)
    # The last one is the outermost: a refused body is counted and has its headers too.
    app.add_middleware(BodyLimit, most=settings.max_upload_bytes)
    app.add_middleware(Measured)
    app.add_middleware(page.SecurityHeaders)
    app.add_middleware(ClientAddress, trusted=settings.trusted_proxies)
    return app
