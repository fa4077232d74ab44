"""The HTTP application: routes, errors, limits, headers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version

from fastapi import FastAPI, Request, Response

from atlas_review import (
    case_routes,
    health_routes,
    label_routes,
    organ_routes,
    page,
    problems,
    queue_routes,
    session_routes,
)
from atlas_review.body_limit import BodyLimit
from atlas_review.service import Review
from atlas_review.settings import ReviewSettings
from atlas_review.versions_view import API


def create_app(settings: ReviewSettings | None = None) -> FastAPI:
    """The application; it connects when it is started and closes when it is stopped."""
    settings = settings or ReviewSettings()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        review = Review.open(settings)
        app.state.review = review
        try:
            yield
        finally:
            review.catalog.close()

    app = FastAPI(
        title="Atlas Loop review",
        version=version("atlasloop"),
        description="The revision queue, the labels and the attention maps of an atlas.",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        openapi_url=f"{API}/openapi.json",
    )
    problems.install(app)
    for module in (session_routes, organ_routes, queue_routes, case_routes, label_routes):
        app.include_router(module.router, prefix=API)
    app.include_router(health_routes.router)
    page.install(app)
    _measure(app)
    app.add_middleware(page.SecurityHeaders)
    app.add_middleware(BodyLimit, most=settings.max_upload_bytes)
    return app


def _measure(app: FastAPI) -> None:
    """Count requests by route, never by address: an address names a case."""

    @app.middleware("http")
    async def measure(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        began = time.perf_counter()
        response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "none")
        metrics = request.app.state.review.metrics
        metrics.requests.labels(request.method, route, str(response.status_code)).inc()
        metrics.request_seconds.labels(route).observe(time.perf_counter() - began)
        return response
