"""The standard gRPC health service, told by real inferences."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from atlas_core.errors import AtlasError
from atlas_core.model_spec import ModelSpec
from grpc_health.v1 import health, health_pb2

from atlas_attention.observability import Metrics

_log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
"""How often the model server is asked what it has in service; it answers from memory."""


class ProbedModels(Protocol):
    """What `triton.TritonPredictor` tells of its models."""

    def ensemble(self) -> tuple[ModelSpec, ...]: ...

    def proven(self, spec: ModelSpec, within_s: float) -> bool: ...

    def probe(self, spec: ModelSpec) -> None: ...


class HealthWatch:
    """Keeps the health service SERVING while every model of the ensemble answers, NOT_SERVING else.

    An inference that worked within `interval_s` is proof enough, so under load nothing is added;
    an idle model, and one whose last inference failed, is tried with a window of air.

    Args:
        services: names to report on; the empty name stands for the whole server.
    """

    def __init__(
        self,
        servicer: health.HealthServicer,
        services: tuple[str, ...],
        models: ProbedModels,
        metrics: Metrics,
        interval_s: float,
    ) -> None:
        self._servicer = servicer
        self._services = services
        self._models = models
        self._metrics = metrics
        self._interval_s = interval_s
        self._serving: bool | None = None
        self._stop = threading.Event()
        self._report(False)
        self._thread = threading.Thread(target=self._watch, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Report NOT_SERVING from now on, and end the watch."""
        self._stop.set()
        self._servicer.enter_graceful_shutdown()
        self._thread.join()

    def _watch(self) -> None:
        looked = False
        while not self._stop.is_set():
            try:
                self._try_models()
            except AtlasError as error:
                # At the start too: why a pod never became ready must stand in its log.
                if self._serving or not looked:
                    _log.warning("not serving: %s", error)
                self._report(False)
            else:
                if not self._serving:
                    _log.info("serving")
                self._report(True)
            looked = True
            self._stop.wait(LOOK_INTERVAL_S)

    def _try_models(self) -> None:
        for spec in self._models.ensemble():
            if not self._models.proven(spec, self._interval_s):
                self._models.probe(spec)

    def _report(self, serving: bool) -> None:
        self._serving = serving
        self._metrics.serving.set(serving)
        status = health_pb2.HealthCheckResponse
        for service in self._services:
            self._servicer.set(service, status.SERVING if serving else status.NOT_SERVING)
