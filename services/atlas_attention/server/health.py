"""The standard gRPC health service, backed by real inferences."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import grpc
from atlas_core.errors import AtlasError, Unavailable
from atlas_core.model_spec import ModelSpec
from grpc_health.v1 import health, health_pb2

from atlas_attention.observability import AttentionMetrics

_log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""How often the model server is asked what it has in service; it answers from memory."""


class HealthChecks(health.HealthServicer):
    """The standard health service without ``Watch``: each watcher would keep a thread for itself.
    Its clients take UNIMPLEMENTED as the sign not to watch, and ``Check`` is what probes call."""

    def __init__(self) -> None:
        super().__init__(experimental_non_blocking=False)

    def Watch(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, *_: object
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """Not there."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "health is not watched here; call Check")


class ProbedModels(Protocol):
    """What the health check needs to know of the models; see `triton.TritonPredictor`."""

    def ensemble(self) -> tuple[ModelSpec, ...]: ...

    def answered_within(self, spec: ModelSpec, seconds: float) -> bool: ...

    def probe(self, spec: ModelSpec) -> None: ...


class HealthWatch:
    """Reports SERVING while every model of the ensemble answers and there is room for a call, and
    NOT_SERVING otherwise.

    A model that answered within `interval_s` counts as healthy, so nothing is added under load; a
    model that was idle, or whose last inference failed, is probed with a window of air.

    Args:
        services: names to report on; the empty name stands for the whole server.
        interval_s: an idle model is probed this often, in seconds.
        full: whether the next call would be refused; then a load balancer has others to ask.
    """

    def __init__(
        self,
        servicer: health.HealthServicer,
        services: tuple[str, ...],
        models: ProbedModels,
        metrics: AttentionMetrics,
        interval_s: float,
        full: Callable[[], bool],
    ) -> None:
        self._servicer = servicer
        self._services = services
        self._models = models
        self._metrics = metrics
        self._interval_s = interval_s
        self._full = full
        self._serving: bool | None = None
        self._stop = threading.Event()
        self._report(False)
        self._thread = threading.Thread(target=self._watch, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Report NOT_SERVING from now on, and end the thread."""
        self._stop.set()
        self._servicer.enter_graceful_shutdown()
        self._thread.join()

    def _watch(self) -> None:
        checked = False
        while not self._stop.is_set():
            try:
                self._probe_idle_models()
            except AtlasError as error:
                # At the start too: the log must show why a pod never became ready.
                if self._serving or not checked:
                    _log.warning("not serving: %s", error)
                self._report(False)
            else:
                if not self._serving:
                    _log.info("serving")
                self._report(True)
            checked = True
            self._stop.wait(CHECK_INTERVAL_S)

    def _probe_idle_models(self) -> None:
        if self._full():
            raise Unavailable("as many calls as there may be are running or waiting")
        for spec in self._models.ensemble():
            if not self._models.answered_within(spec, self._interval_s):
                self._models.probe(spec)

    def _report(self, serving: bool) -> None:
        self._serving = serving
        self._metrics.serving.set(serving)
        status = health_pb2.HealthCheckResponse
        for service in self._services:
            self._servicer.set(service, status.SERVING if serving else status.NOT_SERVING)
