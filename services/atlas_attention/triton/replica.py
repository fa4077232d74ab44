"""One model server: what it has loaded, and windows predicted by it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import tritonclient.grpc as triton
from atlas_core.addresses import Endpoint
from atlas_core.ensembles import EnsembleDescription
from atlas_core.errors import AtlasError, Unavailable
from atlas_core.model_spec import ModelRef, ModelSpec
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from atlas_attention.triton.buffer_pool import BufferPool
from atlas_attention.triton.client import CONTROL_TIMEOUT_S, TritonOptions, open_client
from atlas_attention.triton.ensemble import (
    ServerModels,
    described_spec,
    stated_ensembles,
    stated_in_service,
)
from atlas_attention.triton.errors import (
    ServerUnreachable,
    is_not_loaded,
    is_unknown_region,
    may_still_run,
    outcome_label,
    server_errors,
    translate,
)
from atlas_attention.triton.transport import TensorTransport, open_transport
from atlas_attention.triton.window_buffers import WindowBuffers

QUARANTINE_PAUSE_S = (0.02, 1.0)
"""First and longest pause between two attempts to take regions back from the server."""

OnAnswer = Callable[[ModelSpec, float, str], None]
"""Takes model, seconds and `outcome_label` of every inference."""


@dataclass(eq=False)
class WindowRequest:
    """One window at one model.

    Attributes:
        window: float32 ``[z, y, x]``, Hounsfield units.
        buffers: at the server that has it now.
        repeated: it was sent again to a server that did not know a region.
        lost: servers that it was lost with.
    """

    spec: ModelSpec
    window: NDArray[np.float32]
    answer: Future[NDArray[np.uint8]] = field(default_factory=Future)
    buffers: WindowBuffers = field(default_factory=WindowBuffers)
    repeated: bool = False
    lost: set[TritonReplica] = field(default_factory=set)


class TritonReplica:
    """One server. Thread-safe. Nothing is connected until the first call.

    Args:
        changed: notified when buffers become free.
        on_lost: asked, in a thread that must not wait, when the server fails a request; True: it
            goes elsewhere, False: it fails.
        on_answer: called after every inference.

    Attributes:
        models: what the server last said that it has loaded; None: it was not asked yet.
        silent: it did not answer when it was last asked that.
        failing: models whose last inference failed.
        sent: requests so far.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: TritonOptions,
        changed: threading.Condition,
        on_lost: Callable[[TritonReplica, WindowRequest, Unavailable], bool],
        on_answer: OnAnswer | None,
    ) -> None:
        self.endpoint = endpoint
        self.models: ServerModels | None = None
        self.silent = False
        self.failing: set[ModelRef] = set()
        self.sent = 0
        self._options = options
        self._on_lost = on_lost
        self._on_answer = on_answer
        self._client = open_client(endpoint, options.tls)
        self.pool = BufferPool(self._client, options.windows_in_flight, changed)
        self._transport: TensorTransport | None = None
        self._transport_lock = threading.Lock()
        self._under_way: set[WindowRequest] = set()
        self._last_answer: dict[ModelRef, float] = {}  # only where it was no failure
        self._recoveries: queue.SimpleQueue[WindowRequest | WindowBuffers | None] = (
            queue.SimpleQueue()
        )
        self._recovery = threading.Thread(target=self._recover, name="triton-recovery", daemon=True)
        self._recovery.start()

    @property
    def reachable(self) -> bool:
        """As of the last calls to it."""
        return not self.silent and self.pool.outage is None

    def has(self, spec: ModelSpec) -> bool:
        """Whether the server said that it has this very version loaded."""
        return self.models is not None and spec in self.models.ready

    def server_models(self) -> ServerModels:
        """What the server has loaded now.

        Raises:
            Unavailable: it does not answer.
            ConfigurationError: a model describes itself, or an ensemble, wrongly.
        """
        try:
            self.models = self._ask()
        except Unavailable:
            self.silent = True
            raise
        self.silent = False
        self.pool.outage = None
        return self.models

    def _ask(self) -> ServerModels:
        specs: list[ModelSpec] = []
        in_service: dict[str, int | None] = {}
        described: dict[str, dict[int, EnsembleDescription]] = {}
        with server_errors():
            # Not the repository's index: to Triton that is model control, which a deployment keeps
            # to the flows. Statistics name what is ready, too.
            ready = self._client.get_inference_statistics(client_timeout=CONTROL_TIMEOUT_S)
            for name, version in sorted({(m.name, m.version) for m in ready.model_stats}):
                parameters = self._parameters(name, version)
                spec = described_spec(parameters, name, version)
                if spec is not None:
                    specs.append(spec)
                in_service.update(stated_in_service(parameters, name))
                for ensemble, said in stated_ensembles(parameters, name).items():
                    described.setdefault(ensemble, {})[said.revision] = said
        return ServerModels(
            tuple(sorted(specs, key=lambda spec: (spec.name, spec.version))),
            in_service,
            tuple((name, one) for name, ones in described.items() for one in ones.values()),
        )

    def send(self, request: WindowRequest, buffers: WindowBuffers) -> None:
        """Have the server predict the window of `request`, for which it has `buffers`.

        Raises:
            Unavailable, ConfigurationError: it was not sent, and the buffers are given back.
        """
        request.buffers, request.repeated = buffers, False
        self._under_way.add(request)
        self.sent += 1
        try:
            with server_errors():
                self._send(request, self._opened_transport())
        except BaseException as error:
            if isinstance(error, ServerUnreachable):
                self.pool.outage = error
            self._release(request)
            raise

    def answered_within(self, spec: ModelSpec, seconds: float) -> bool:
        """Whether the last inference of `spec` succeeded, at most `seconds` ago."""
        last = self._last_answer.get(spec.ref)
        return last is not None and time.monotonic() - last <= seconds

    def close(self) -> None:
        """Give up the windows under way, take all regions back and unlink them."""
        if not self.pool.stop():
            return
        for request in list(self._under_way):
            request.answer.cancel()
        self.pool.wait_until_free()
        self._end()

    def retire(self) -> None:
        """As `close`, once the windows under way are answered, or lost and sent elsewhere."""
        if self.pool.stop():
            self.pool.wait_until_free(self._options.inference_timeout_s)
            self._end()

    def _end(self) -> None:
        self._recoveries.put(None)
        self._recovery.join()
        self.pool.close()
        self._client.close()

    def _parameters(self, name: str, version: str) -> Mapping[str, str]:
        """The parameters of a version; none if it was unloaded since it was listed."""
        try:
            config = self._client.get_model_config(name, version, client_timeout=CONTROL_TIMEOUT_S)
        except InferenceServerException as error:
            if is_not_loaded(error):
                return {}
            raise
        return {key: value.string_value for key, value in config.config.parameters.items()}

    def _opened_transport(self) -> TensorTransport:
        with self._transport_lock:
            if self._transport is None:
                self._transport = open_transport(
                    self._client, self._options.shared_memory, self._options.device
                )
            return self._transport

    def _send(self, request: WindowRequest, transport: TensorTransport) -> None:
        buffers, spec = request.buffers, request.spec
        with buffers.lock:
            if buffers.tensor is None:
                buffers.tensor = transport.stage(buffers, request.window)
            output = transport.request_output(buffers, spec)
        started = time.monotonic()
        self._client.async_infer(
            spec.name,
            [buffers.tensor],
            lambda result, error: self._answered(request, transport, result, error, started),
            model_version=str(spec.triton_version),
            outputs=[output],
            client_timeout=self._options.inference_timeout_s,
        )

    def _answered(
        self,
        request: WindowRequest,
        transport: TensorTransport,
        result: triton.InferResult | None,
        error: InferenceServerException | None,
        started: float,
    ) -> None:
        """Runs in gRPC's own thread: nothing here may wait for the server."""
        soft: NDArray[np.uint8] | None = None
        failure: AtlasError | None = None
        if error is not None:
            if is_unknown_region(error) and not request.repeated:
                request.repeated = True
                self._recoveries.put(request)
                return
            failure = translate(error, request.spec)
        else:
            try:
                soft = transport.read(request.buffers, request.spec, result)
            except AtlasError as unreadable:
                failure = unreadable
        self._finish(request, soft, failure, unanswered=may_still_run(error), started=started)

    def _finish(
        self,
        request: WindowRequest,
        soft: NDArray[np.uint8] | None,
        failure: AtlasError | None,
        *,
        unanswered: bool,
        started: float,
    ) -> None:
        if soft is not None:
            self._last_answer[request.spec.ref] = time.monotonic()
            self.failing.discard(request.spec.ref)
            self.pool.outage = None
        elif not request.answer.cancelled():
            self._last_answer.pop(request.spec.ref, None)
            self.failing.add(request.spec.ref)
        if isinstance(failure, ServerUnreachable):
            self.pool.outage = failure
        self._release(request, unanswered=unanswered)
        if self._on_answer is not None and not request.answer.cancelled():
            self._on_answer(request.spec, time.monotonic() - started, outcome_label(failure))
        if isinstance(failure, Unavailable) and self._on_lost(self, request, failure):
            return
        if request.answer.set_running_or_notify_cancel():
            if soft is not None:
                request.answer.set_result(soft)
            else:
                request.answer.set_exception(failure)

    def _release(self, request: WindowRequest, *, unanswered: bool = False) -> None:
        self._under_way.discard(request)
        if self.pool.release(request.buffers, unanswered=unanswered):
            self._recoveries.put(request.buffers)

    def _recover(self) -> None:
        """Thread that waits for the server where gRPC's callbacks must not: sends requests again,
        and takes quarantined buffers back."""
        quarantined: list[WindowBuffers] = []
        first, longest = QUARANTINE_PAUSE_S
        pause = first
        while True:
            try:
                item = self._recoveries.get(timeout=pause if quarantined else None)
            except queue.Empty:
                pause = min(2 * pause, longest)
            else:
                if item is None:
                    return
                if isinstance(item, WindowRequest):
                    self._repeat(item)
                else:
                    quarantined.append(item)
                    pause = first
            quarantined = [buffers for buffers in quarantined if not self.pool.reclaim(buffers)]

    def _repeat(self, request: WindowRequest) -> None:
        """Register the regions of a request with a server that was restarted, and send it again."""
        if request.answer.cancelled():
            self._release(request)
            return
        started = time.monotonic()
        try:
            with server_errors():
                request.buffers.register_again(self._client)
                self._send(request, self._opened_transport())
        except AtlasError as failure:
            self._finish(request, None, failure, unanswered=False, started=started)
