"""The gRPC server: attention, health and reflection, with the metrics server beside it.

A synchronous server with threads: a call waits for the model server, or computes in kernels that
release the interpreter lock. An event loop would gain nothing, and no kernel or file could be
touched on it. A thread per call is cheap because the number of calls is bounded.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import grpc
from atlas_core.errors import ConfigurationError
from atlas_core.metrics_server import MetricsServer
from atlas_core.store import CaseStore
from atlasloop.attention.v1 import attention_pb2 as pb
from atlasloop.attention.v1 import attention_pb2_grpc as stubs
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from atlas_attention.observability import AttentionMetrics, Tracer
from atlas_attention.scoring import default_windows_in_flight
from atlas_attention.server.health import HealthChecks, HealthWatch
from atlas_attention.server.interceptor import CallInterceptor, StalledCalls
from atlas_attention.server.servicer import AttentionServicer
from atlas_attention.settings import ENV_PREFIX, AttentionSettings
from atlas_attention.triton import TritonOptions, TritonPredictor

SERVICE = str(pb.DESCRIPTOR.services_by_name["AttentionService"].full_name)

SPARE_THREADS = 8
"""For health, reflection and refusals while the maximum number of calls is admitted."""

MESSAGE_OVERHEAD = 1 << 16
"""A message is a little larger than the voxels in it."""

_log = logging.getLogger(__name__)


class AttentionServer:
    """One service with all its parts. Use as a context manager, or `close` it.

    Raises:
        ConfigurationError: an address is taken, the case store is not writable, or the GPU that is
            configured cannot be used.
    """

    def __init__(self, settings: AttentionSettings) -> None:
        store = CaseStore(settings.store)
        store.require_usable()
        with ExitStack() as parts:
            metrics = AttentionMetrics()
            if settings.metrics_listen:
                scraped = MetricsServer(
                    metrics.registry,
                    settings.metrics_listen,
                    settings.metrics_hosts,
                    env_prefix=ENV_PREFIX,
                )
                parts.callback(scraped.close)
            predictor = TritonPredictor(
                TritonOptions(
                    settings.triton,
                    settings.shared_memory,
                    settings.windows_in_flight or default_windows_in_flight(),
                    settings.inference_timeout_s,
                    settings.device,
                    settings.triton_tls,
                ),
                metrics.inference,
            )
            parts.callback(predictor.close)
            metrics.watch(lambda: predictor.buffers_in_use, lambda: predictor.regions)
            store.sweep()
            stalled = StalledCalls()
            parts.callback(stalled.close)
            tracer = Tracer(settings.traces)
            parts.callback(tracer.close)
            interceptor = CallInterceptor(SERVICE, settings, metrics, stalled, tracer)
            server = _grpc_server(settings, interceptor)
            servicer = AttentionServicer(settings, store, predictor, metrics, tracer)
            stubs.add_AttentionServiceServicer_to_server(servicer, server)
            health_servicer = _add_standard_services(server)
            _bind(server, settings.listen)
            server.start()
            parts.callback(lambda: server.stop(settings.stop_grace_s).wait())
            watch = HealthWatch(
                health_servicer,
                ("", SERVICE),
                predictor,
                metrics,
                settings.health_interval_s,
                lambda: servicer.full,
            )
            # Closed first: load balancers stop sending calls before those under way end.
            parts.callback(watch.close)
            self._parts = parts.pop_all()
        _log.info("listening", extra={"fields": {"address": settings.listen}})

    def close(self) -> None:
        """Refuse new calls, let those under way end within the grace period, free everything."""
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _grpc_server(settings: AttentionSettings, interceptor: CallInterceptor) -> grpc.Server:
    threads = settings.max_calls + settings.max_waiting + SPARE_THREADS
    return grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="call"),
        interceptors=[interceptor],
        maximum_concurrent_rpcs=threads,
        options=server_options(settings, threads),
    )


def server_options(settings: AttentionSettings, threads: int) -> list[tuple[str, int]]:
    """How gRPC keeps connections and bounds messages; a connection has `threads` calls at most."""
    return [
        # By default a second server could bind the same port and get some of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_message_bytes + MESSAGE_OVERHEAD),
        ("grpc.max_send_message_length", settings.max_message_bytes + MESSAGE_OVERHEAD),
        # A client whose machine is gone is noticed within a minute.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Of one connection; a client that asks for more at once waits on its own side.
        ("grpc.max_concurrent_streams", threads),
        # A connection that says nothing, or that nobody uses, is not kept for ever.
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 600_000),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.absolute_max_metadata_size", 16 << 10),
        # Then a client looks up the addresses again, and new replicas get work. No grace period:
        # calls under way end when they end, as no inference is cancelled.
        ("grpc.max_connection_age_ms", int(1000 * settings.max_connection_age_s)),
    ]


def _add_standard_services(server: grpc.Server) -> HealthChecks:
    servicer = HealthChecks()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = (
        SERVICE,
        str(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name),
        reflection.SERVICE_NAME,
    )
    reflection.enable_server_reflection(names, server)
    return servicer


def _bind(server: grpc.Server, address: str) -> None:
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if not bound:
        raise ConfigurationError(
            f"cannot listen on {address}",
            expected="a free port of this machine",
            remedy=f"free the port, or set {ENV_PREFIX}LISTEN",
        )
