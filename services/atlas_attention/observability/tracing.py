"""OpenTelemetry traces: off unless `AttentionSettings.traces` names a collector.

A call is one span, a child of the caller's where its metadata carries a W3C ``traceparent``. Within
it lie ``receive`` (a client's upload) and ``attend`` (from the first window to the last slab).
Attributes are case ids, models and numbers; never text from a file, a header or a client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Attributes = Mapping[str, str | int | float]

_PARENT = TraceContextTextMapPropagator()


class Tracer:
    """Makes spans; without a collector they cost nothing and are dropped.

    Args:
        collector: URL that takes traces by OTLP over HTTP, or empty.
    """

    def __init__(self, collector: str = "") -> None:
        self._provider: TracerProvider | None = None
        if collector:
            # Imported here: it loads an HTTP client that a service without traces does not need.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            # No resource detectors: they would add the host name and the command line.
            resource = Resource({SERVICE_NAME: "atlasloop-attention"})
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(
                BatchSpanProcessor(OTLPSpanExporter(endpoint=collector))
            )
        provider = self._provider or trace.NoOpTracerProvider()
        self._tracer = provider.get_tracer("atlas_attention")

    def call(self, method: str, metadata: Mapping[str, str]) -> trace.Span:
        """The span of one call; the caller ends it.

        Args:
            metadata: of the call; names the client's span if the client traces.
        """
        return self._tracer.start_span(
            method,
            context=_PARENT.extract(metadata),
            kind=trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.method": method},
        )

    @contextmanager
    def part(self, name: str) -> Iterator[Callable[[Attributes], None]]:
        """A span for the block, within the current one; yields the setter of its attributes.

        The span does not become the current one, so the block itself may be part of a generator.
        """
        span = self._tracer.start_span(name)
        try:
            yield span.set_attributes
        finally:
            span.end()

    def close(self) -> None:
        """Sends the spans that are still buffered."""
        if self._provider is not None:
            self._provider.shutdown()
