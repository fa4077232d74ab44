"""What surrounds every call: status, metrics, log, trace, and a limit for clients that stop
reading."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import grpc
from atlas_core.errors import AtlasError, InvalidInput
from google.protobuf.message import Message
from opentelemetry.trace import Span, use_span

from atlas_attention.observability import AttentionMetrics, Tracer
from atlas_attention.server.messages import require_bounded
from atlas_attention.server.request_stream import Allowance, RequestStream
from atlas_attention.server.status import OK, CallStatus, status_of
from atlas_attention.settings import AttentionSettings

_log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.5
"""How often stalled calls are looked for."""

FIRST_MESSAGE_S = 10.0
"""A call that holds one small request brings it along; waiting for it takes a thread."""

SMALL_BYTES_PER_S = 100.0
"""What is read of health and reflection at least, in the long run."""


class StalledCalls:
    """Cancels calls whose client does not read the next message while its `Allowance` lasts.

    gRPC lets a server wait for ever for a client that keeps its connection and reads nothing; the
    call would hold its place and its spool file.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[grpc.ServicerContext, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stalled-calls", daemon=True)
        self._thread.start()

    @contextmanager
    def sending(
        self, context: grpc.ServicerContext, allowance: Allowance, size: int
    ) -> Iterator[None]:
        """The block sends one message of `size` bytes, and ends when the client has read it."""
        began = time.monotonic()
        with self._lock:
            self._until[context] = began + allowance.left_s
        try:
            yield
        finally:
            with self._lock:
                self._until.pop(context, None)
            # Progress is a few bytes: reading it within a second is as good as anybody's.
            allowance.spend(max(0.0, time.monotonic() - began - 1), size)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_INTERVAL_S):
            now = time.monotonic()
            with self._lock:
                stalled = [context for context, until in self._until.items() if until < now]
                for context in stalled:
                    del self._until[context]
            for context in stalled:
                _log.warning("a client takes no answer; its call is ended")
                context.cancel()


class CallInterceptor(grpc.ServerInterceptor):
    """Wraps every call, so that no client keeps a thread waiting for its first message; those of
    one service are also recorded.

    Args:
        service: full name, for instance ``atlasloop.attention.v1.AttentionService``.
        settings: limits of clients.
    """

    def __init__(
        self,
        service: str,
        settings: AttentionSettings,
        metrics: AttentionMetrics,
        stalled: StalledCalls,
        tracer: Tracer,
    ) -> None:
        self._prefix = f"/{service}/"
        self._metrics = metrics
        self._stalled = stalled
        self._tracer = tracer
        self._idle_s = settings.idle_timeout_s
        self._total_s = settings.upload_timeout_s
        self._bytes_per_s = settings.min_client_rate

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See `grpc.ServerInterceptor`."""
        handler: Any = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        name = method.removeprefix(self._prefix) if method.startswith(self._prefix) else None
        # gRPC's own wait for the one request of a call has no limit; on the wire there is no
        # difference.
        return grpc.stream_stream_rpc_method_handler(
            self._unrecorded(handler) if name is None else self._recording(name, handler),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _unrecorded(self, handler: Any) -> Callable[..., Iterator[Any]]:
        """Health and reflection: a few bytes in each direction."""

        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            reading = Allowance(FIRST_MESSAGE_S, SMALL_BYTES_PER_S)
            try:
                with self._stream(requests, context, FIRST_MESSAGE_S) as received:
                    for response in _answers(handler, received, context):
                        with self._stalled.sending(context, reading, response.ByteSize()):
                            yield response
                return
            except (AtlasError, CancelledError) as error:
                status = status_of(error)
            context.abort(status.code, status.message)

        return call

    def _recording(self, name: str, handler: Any) -> Callable[..., Iterator[Any]]:
        # The one request of a call comes with it; only streams may pause.
        pause_s = self._idle_s if handler.request_streaming else min(FIRST_MESSAGE_S, self._idle_s)

        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            reading = Allowance(self._idle_s, self._bytes_per_s)
            with (
                self._recorded(name, context) as record,
                self._stream(requests, context, pause_s) as received,
                closing(_answers(handler, record.received(received), context)) as responses,
            ):
                for response in record.each_current(responses):
                    record.sent(response)
                    with self._stalled.sending(context, reading, response.ByteSize()):
                        yield response

        return call

    def _stream(
        self, requests: Iterator[Any], context: grpc.ServicerContext, pause_s: float
    ) -> RequestStream[Any]:
        return RequestStream(
            requests,
            allowance=Allowance(pause_s, self._bytes_per_s),
            total_timeout_s=self._total_s,
            cancelled=cancellation(context),
            size=lambda message: message.ByteSize(),
        )

    @contextmanager
    def _recorded(self, name: str, context: grpc.ServicerContext) -> Iterator[_CallRecord]:
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        span = self._tracer.call(name, metadata)
        record = _CallRecord(name, self._metrics, span)
        try:
            yield record
        except BaseException as error:
            status = status_of(error)
            record.ended(status, error)
            if isinstance(error, GeneratorExit):
                raise  # the client has left, and nothing can be sent any more
        else:
            record.ended(OK)
            return
        # Outside the except block, so that the status is not chained to the error it replaces.
        context.abort(status.code, status.message)


def cancellation(context: grpc.ServicerContext) -> threading.Event:
    """An event that is set when the call ends: the client left, a deadline passed, or all was sent.

    Raises:
        CancelledError: the call has ended already.
    """
    ended = threading.Event()
    if not context.add_callback(ended.set):
        raise CancelledError
    return ended


def _answers(
    handler: Any, requests: Iterator[Any], context: grpc.ServicerContext
) -> Generator[Any, None, None]:
    """What `handler`, of whatever kind, answers to a stream of requests."""
    if handler.request_streaming:
        yield from handler.stream_stream(requests, context)
        return
    request = next(requests, None)
    if request is None:
        raise InvalidInput("malformed call", expected="one request", got="none")
    if handler.response_streaming:
        yield from handler.unary_stream(request, context)
    else:
        yield handler.unary_unary(request, context)


class _CallRecord:
    """One call as metrics, log and trace record it."""

    def __init__(self, method: str, metrics: AttentionMetrics, span: Span) -> None:
        self._method = method
        self._case_id = ""
        self._metrics = metrics
        self._span = span
        self._began = time.monotonic()

    def current(self) -> AbstractContextManager[Span]:
        """Makes this call's span the parent of spans that the block starts."""
        return use_span(self._span, record_exception=False, set_status_on_exception=False)

    def each_current(self, responses: Iterator[Message]) -> Iterator[Message]:
        """`responses`, each made within this call's span, which is not current while the client
        reads it."""
        while True:
            with self.current():
                response = next(responses, None)
            if response is None:
                return
            yield response

    def received(self, requests: Iterator[Message]) -> Iterator[Message]:
        """`requests`, each counted and bounded before anything of it is recorded or used."""
        for request in requests:
            self._count("received", request)
            require_bounded(request)
            self._case_id = getattr(request, "case_id", "")
            yield request

    def sent(self, response: Message) -> None:
        """Counts a message to the client."""
        self._count("sent", response)

    def ended(self, status: CallStatus, error: BaseException | None = None) -> None:
        """Records the end of the call."""
        seconds = time.monotonic() - self._began
        self._metrics.calls.labels(self._method, status.code.name).inc()
        self._metrics.call_seconds.labels(self._method).observe(seconds)
        self._span.set_attributes(
            {"atlasloop.case": self._case_id, "rpc.grpc.status_code": status.code.value[0]}
        )
        self._span.end()
        fields = {
            "method": self._method,
            "case": self._case_id,
            "status": status.code.name,
            "seconds": round(seconds, 3),
        }
        if status.error_id is not None:
            fields["error_id"] = status.error_id
            _log.error("call failed", extra={"fields": fields}, exc_info=error)
        else:
            _log.info(status.message or "call done", extra={"fields": fields})

    def _count(self, direction: str, message: Message) -> None:
        self._metrics.bytes.labels(self._method, direction).inc(message.ByteSize())
