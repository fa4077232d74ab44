"""Prometheus metrics of the service. No label ever holds a case or a client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from atlas_core.model_spec import ModelSpec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

PREFIX = "atlasloop_attention"

INFERENCE_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""From a small window on a GPU to a Swin UNETR window on a laptop's CPU."""

CALL_BUCKETS_S = (0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800)


class AttentionMetrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, labels, buckets=buckets, registry=registry)

        self.calls = counter("calls", "Calls ended", "method", "status")
        self.call_seconds = histogram("call_seconds", "Of calls", CALL_BUCKETS_S, "method")
        self.admitted = gauge("calls_admitted", "Calls worked on or waiting")
        self.receiving = gauge("calls_receiving", "Calls that receive a client's data")
        self.working = gauge("calls_working", "Calls worked on")
        self.bytes = counter("bytes", "Message bytes", "method", "direction")
        self.inferences = counter(
            "inferences", "Windows at one model", "model", "version", "outcome"
        )
        self.inference_seconds = histogram(
            "inference_seconds",
            "From sending a window to its answer",
            INFERENCE_BUCKETS_S,
            "model",
            "version",
        )
        self.windows_air = counter("windows_air", "Windows at one model left out as air")
        self.stage_seconds = counter(
            "stage_seconds", "By stage: receive, predict (waiting for models), fuse, write", "stage"
        )
        self.in_flight = gauge("windows_in_flight", "Windows with the models")
        self.regions = gauge("shared_memory_regions", "Regions that exist")
        self.serving = gauge("serving", "1 while every model answers")

    def watch(self, in_flight: Callable[[], int], regions: Callable[[], int]) -> None:
        """Where to read windows in flight and regions at every scrape."""
        self.in_flight.set_function(in_flight)
        self.regions.set_function(regions)

    def inference(self, spec: ModelSpec, seconds: float, outcome: str) -> None:
        """Counts one window at one model.

        Args:
            seconds: from sending the window to its answer or failure.
            outcome: ``ok``, or how it failed.
        """
        version = str(spec.version)
        self.inferences.labels(spec.name, version, outcome).inc()
        if outcome == "ok":
            self.inference_seconds.labels(spec.name, version).observe(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to stage `name`."""
        began = monotonic()
        try:
            yield
        finally:
            self.stage_seconds.labels(name).inc(monotonic() - began)
