"""The HTTP application: routes, errors, limits, headers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

import anyio
from fastapi import FastAPI

from atlas_review import events, page, problems
from atlas_review.api import (
    BodyLimit,
    cases,
    health,
    labels,
    oidc,
    organs,
    queue,
    session,
    statistics,
)
from atlas_review.auth import ClientAddress
from atlas_review.label_view import API
from atlas_review.metrics import Measured
from atlas_review.monai_label import routes
from atlas_review.service import Review
from atlas_review.settings import ReviewSettings


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
        session,
        organs,
        queue,
        cases,
        labels,
        statistics,
    ):
        app.include_router(module.router, prefix=API)
    app.include_router(routes.router)
    app.include_router(health.router)
    oidc.install(app, settings)
    page.install(app)
    # The last one is the outermost: a refused body is counted and has its headers too.
    app.add_middleware(BodyLimit, most=settings.max_upload_bytes)
    app.add_middleware(Measured)
    app.add_middleware(page.SecurityHeaders)
    app.add_middleware(ClientAddress, trusted=settings.trusted_proxies)
    return app
