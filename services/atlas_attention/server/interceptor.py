"""What surrounds every call: status, metrics, log, trace, and a limit for clients that stop
reading."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from opentelemetry.trace import Span, use_span

from atlas_attention.observability import AttentionMetrics, Tracer
from atlas_attention.server.status import OK, CallStatus, status_of

_log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.5
"""How often stalled calls are looked for."""


class StalledCalls:
    """Cancels calls whose client does not read the next message within `idle_timeout_s`.

    gRPC lets a server wait for ever for a client that keeps its connection and reads nothing; the
    call would hold its place and its spool file.
    """

    def __init__(self, idle_timeout_s: float) -> None:
        self._idle_s = idle_timeout_s
        self._lock = threading.Lock()
        self._since: dict[grpc.ServicerContext, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stalled-calls", daemon=True)
        self._thread.start()

    @contextmanager
    def sending(self, context: grpc.ServicerContext) -> Iterator[None]:
        """The block sends one message, and ends when the client has read it."""
        with self._lock:
            self._since[context] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._since.pop(context, None)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_INTERVAL_S):
            oldest = time.monotonic() - self._idle_s
            with self._lock:
                stalled = [context for context, since in self._since.items() if since < oldest]
                for context in stalled:
                    del self._since[context]
            for context in stalled:
                _log.warning("a client takes no answer; its call is ended")
                context.cancel()


class CallInterceptor(grpc.ServerInterceptor):
    """Wraps the calls of one service; others (health, reflection) pass through unchanged.

    Args:
        service: full name, for instance ``atlasloop.attention.v1.AttentionService``.
    """

    def __init__(
        self, service: str, metrics: AttentionMetrics, stalled: StalledCalls, tracer: Tracer
    ) -> None:
        self._prefix = f"/{service}/"
        self._metrics = metrics
        self._stalled = stalled
        self._tracer = tracer

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See `grpc.ServerInterceptor`."""
        handler: Any = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(self._prefix):
            return handler
        name = method.removeprefix(self._prefix)
        codec = (handler.request_deserializer, handler.response_serializer)
        if not handler.response_streaming:
            single = self._single(name, handler.unary_unary)
            return grpc.unary_unary_rpc_method_handler(single, *codec)
        if not handler.request_streaming:
            answering = self._streaming(name, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(answering, *codec)
        conversing = self._streaming(name, handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(conversing, *codec)

    def _single(self, name: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Message, context: grpc.ServicerContext) -> Any:
            with self._recorded(name, request, context) as record:
                with record.current():
                    response = behaviour(request, context)
                record.sent(response)
                return response

        return call

    def _streaming(self, name: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with (
                self._recorded(name, request, context) as record,
                closing(behaviour(record.received(request), context)) as responses,
            ):
                for response in record.each_current(responses):
                    record.sent(response)
                    with self._stalled.sending(context):
                        yield response

        return call

    @contextmanager
    def _recorded(
        self, name: str, request: Any, context: grpc.ServicerContext
    ) -> Iterator[_CallRecord]:
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        span = self._tracer.call(name, metadata)
        record = _CallRecord(name, getattr(request, "case_id", ""), self._metrics, span)
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


class _CallRecord:
    """One call as metrics, log and trace record it."""

    def __init__(self, method: str, case_id: str, metrics: AttentionMetrics, span: Span) -> None:
        self._method = method
        self._case_id = case_id
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

    def received(self, request: Any) -> Any:
        """`request`, or an iterator of them, with its bytes counted."""
        if isinstance(request, Message):
            self._count("received", request)
            return request
        return self._each_received(request)

    def _each_received(self, requests: Iterator[Message]) -> Iterator[Message]:
        for request in requests:
            self._count("received", request)
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
