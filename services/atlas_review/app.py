"""The HTTP application: routes, errors, limits, headers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from typing import Final

import anyio
from atlas_core.metrics_server import MetricsServer
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from atlas_review import page
from atlas_review.api import (
    API_PREFIX,
    PROBLEM_RESPONSES,
    BodyLimit,
    TextLimit,
    answer_with_problems,
    cases,
    comments,
    drafts,
    health,
    labels,
    oidc,
    organs,
    prompts,
    proposals,
    queue,
    session,
    shapes,
    statistics,
)
from atlas_review.auth import ClientAddressMiddleware
from atlas_review.metrics import RequestMetrics
from atlas_review.monai_label import routes
from atlas_review.prompts import SWEEP_S
from atlas_review.service import Review
from atlas_review.settings import ReviewSettings

DATABASE_CONNECTIONS: Final = 15
"""Of one process: SQLAlchemy's pool of 5, and 10 more when it is busy."""


def create_app(settings: ReviewSettings | None = None) -> FastAPI:
    """The application; it connects to the catalog when it starts and disconnects when it stops."""
    settings = settings or ReviewSettings()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        review = Review.open(settings)
        # More threads than database connections would only wait for one.
        anyio.to_thread.current_default_thread_limiter().total_tokens = DATABASE_CONNECTIONS
        app.state.review = review
        with contextlib.closing(review.catalog), _metrics_served(review):
            async with _prompt_sessions_ended(review):
                yield

    app = FastAPI(
        title="Atlas Loop review",
        version=version("atlasloop"),
        description="The revision queue, the labels and the attention maps of an atlas.",
        lifespan=lifespan,
        responses=PROBLEM_RESPONSES,
        docs_url=None,  # its page would load scripts from another site
        redoc_url=None,
        openapi_url=f"{API_PREFIX}/openapi.json",
    )
    answer_with_problems(app)
    for module in (
        session,
        organs,
        queue,
        cases,
        labels,
        shapes,
        prompts,
        proposals,
        drafts,
        comments,
        statistics,
    ):
        app.include_router(module.router, prefix=API_PREFIX)
    app.include_router(routes.router)
    app.include_router(health.router)
    oidc.install_provider(app, settings)
    page.install_page(app)
    # The last one is the outermost: a refused body, too, is counted and gets the headers.
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes)
    app.add_middleware(TextLimit)
    app.add_middleware(RequestMetrics)
    if origins := [one.strip() for one in settings.cors_origins.split(",") if one.strip()]:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(page.SecurityHeaders)
    app.add_middleware(ClientAddressMiddleware, trusted=settings.trusted_proxies)
    return app


@contextlib.asynccontextmanager
async def _prompt_sessions_ended(review: Review) -> AsyncIterator[None]:
    """Idle ones while it serves, all of them at the end."""
    sessions = review.prompts
    if sessions is None:
        yield
        return

    async def end_idle() -> None:
        while True:
            await anyio.sleep(SWEEP_S)
            await anyio.to_thread.run_sync(sessions.end_idle)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_idle)
        yield
        tasks.cancel_scope.cancel()
    await anyio.to_thread.run_sync(sessions.close)


@contextlib.contextmanager
def _metrics_served(review: Review) -> Iterator[None]:
    """On a port of their own, which the page's visitors do not reach."""
    settings = review.settings
    if not settings.metrics_listen or settings.workers > 1:
        yield
        return
    server = MetricsServer(review.metrics.registry, settings.metrics_listen, settings.metrics_hosts)
    with contextlib.closing(server):
        yield
