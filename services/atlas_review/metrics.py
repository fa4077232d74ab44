"""Prometheus metrics of the service. No label ever names a case or a user."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from atlas_core.errors import AtlasError
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "atlasloop_review"

REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ReviewMetrics:
    """The metrics of one process, in a registry of their own.

    Args:
        count_tasks: tasks by state, asked for at every scrape.
    """

    def __init__(self, count_tasks: Callable[[], Mapping[str, int]]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            f"{PREFIX}_requests",
            "Requests answered",
            ["method", "route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "From request to the first byte of the answer",
            ["route"],
            buckets=REQUEST_BUCKETS_S,
            registry=registry,
        )
        registry.register(_Tasks(count_tasks))


class _Tasks(Collector):
    def __init__(self, count: Callable[[], Mapping[str, int]]) -> None:
        self._count = count

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing is counted to register it."""
        yield GaugeMetricFamily(f"{PREFIX}_tasks", "Tasks by state", labels=["state"])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        (tasks,) = self.describe()
        try:
            for state, number in self._count().items():
                tasks.add_metric([state], number)
        except AtlasError:  # no database: all other metrics are still served
            return
        yield tasks


class RequestMetrics:
    """Counts requests by route template, never by path: a path names a case."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                metrics: ReviewMetrics = scope["app"].state.review.metrics
                metrics.requests.labels(scope["method"], route, str(message["status"])).inc()
                metrics.request_seconds.labels(route).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counted)
