"""What the service counts, for Prometheus. No label ever holds a case or a user."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

PREFIX = "atlasloop_review"

REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The counters of one process, in a registry of their own."""

    def __init__(self) -> None:
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
        self.tasks = Gauge(f"{PREFIX}_tasks", "Tasks by state", ["state"], registry=registry)
        self.undelivered = Counter(
            f"{PREFIX}_event_failures", "Deliveries of events that failed", registry=registry
        )
