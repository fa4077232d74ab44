"""The model server: which models it has in service, and windows predicted by them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc as triton
from atlas_core.ensembles import EnsembleDescription
from atlas_core.errors import (
    AtlasError,
    InvalidInput,
)
from atlas_core.model_spec import ModelRef, ModelSpec
from atlas_core.tls import TlsFiles
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from atlas_attention.fusion import DeviceName
from atlas_attention.triton.buffer_pool import BufferPool
from atlas_attention.triton.client import CONTROL_TIMEOUT_S, open_client
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
from atlas_attention.triton.transport import SharedMemoryKind, TensorTransport, open_transport
from atlas_attention.triton.window_buffers import WindowBuffers

QUARANTINE_PAUSE_S = (0.02, 1.0)
"""First and longest pause between two attempts to take regions back from the server."""


@dataclass(frozen=True)
class TritonOptions:
    """How to reach the model server.

    Attributes:
        address: host:port of its gRPC endpoint.
        shared_memory: ``cuda``, ``system``, ``none``, or ``auto``: the first of those, cuda only on
            a GPU, that the server can map.
        windows_in_flight: most windows with the models at once, each with all of them.
        inference_timeout_s: deadline of one inference, and of the wait for free buffers.
        device: where answers are wanted; by ``cuda`` shared memory they never leave the GPU.
        tls: this end of mutual TLS; None: the connection is neither encrypted nor proved.
    """

    address: str
    shared_memory: SharedMemoryKind = "auto"
    windows_in_flight: int = 4
    inference_timeout_s: float = 60.0
    device: DeviceName = "cpu"
    tls: TlsFiles | None = None


@dataclass(eq=False)
class _Request:
    """One window at one model."""

    spec: ModelSpec
    buffers: WindowBuffers
    answer: Future[NDArray[np.uint8]]
    repeated: bool = False


class TritonPredictor:
    """Predicts windows with the models that Triton has in service. Thread-safe.

    Nothing is connected until the first call, so the server may come up later. `close` gives every
    region back.

    Args:
        on_answer: called after every inference with model, seconds, and its `outcome_label`.
    """

    def __init__(
        self,
        options: TritonOptions,
        on_answer: Callable[[ModelSpec, float, str], None] | None = None,
    ) -> None:
        self._options = options
        self._on_answer = on_answer
        self._client = open_client(options.address, options.tls)
        self._pool = BufferPool(
            self._client, options.windows_in_flight, options.inference_timeout_s
        )
        self._transport: TensorTransport | None = None
        self._transport_lock = threading.Lock()
        self._under_way: set[_Request] = set()
        self._last_answer: dict[ModelRef, float] = {}  # only where it was no failure
        self._recoveries: queue.SimpleQueue[_Request | WindowBuffers | None] = queue.SimpleQueue()
        self._recovery = threading.Thread(target=self._recover, name="triton-recovery", daemon=True)
        self._recovery.start()

    @property
    def buffers_in_use(self) -> int:
        """Windows in flight, and buffers that the server has not released yet."""
        return self._pool.in_use

    @property
    def regions(self) -> int:
        """Regions of shared memory that exist now."""
        return self._pool.regions

    def ready_models(self) -> tuple[ModelSpec, ...]:
        """All versions of all models that are ready, by name and version.

        Raises:
            Unavailable: the server does not answer.
            ConfigurationError: a model describes itself wrongly.
        """
        return self.server_models().ready

    def ensemble(self, wanted: Sequence[str] = ()) -> tuple[ModelSpec, ...]:
        """The voices of the ensemble in use, or the models asked for; see `ServerModels.choose`.

        Raises:
            Unavailable: the server does not answer, or has no model in service.
            NotFound: a wanted model is not in service.
            InvalidInput: a malformed reference, or a model wanted twice.
        """
        return self.server_models().choose(models=wanted).voices

    def server_models(self) -> ServerModels:
        """What the server has loaded, and which ensembles that makes.

        Raises:
            Unavailable: the server does not answer.
            ConfigurationError: a model describes itself, or an ensemble, wrongly.
        """
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

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        """Predict one window with one model.

        Blocks while all buffers are in use. The window may be submitted to several models; it is
        staged once, and must not change before all of them have answered. Cancelling the future
        gives up its answer; the inference runs to its end all the same, since Triton may crash when
        a call is cancelled (decision 43).

        Args:
            window: float32 ``[z, y, x]`` of `spec.patch`, Hounsfield units, C-contiguous.

        Returns:
            uint8 ``[organ, z, y, x]``, or one of the errors below.

        Raises:
            Unavailable: the server is unreachable, the model's process is dead, or a deadline
                passed.
            ConfigurationError: model and description do not fit together.
        """
        expected = tuple(reversed(spec.patch))
        if window.shape != expected or window.dtype != np.float32:
            raise InvalidInput(
                f"window for model {spec.name} has a wrong form",
                expected=f"float32 {expected}",
                got=f"{window.dtype} {window.shape}",
            )
        transport = self._opened_transport()
        request = _Request(spec, self._pool.acquire(window), Future())
        self._under_way.add(request)
        try:
            with server_errors():
                self._send(request, transport)
        except BaseException:
            self._release(request)
            raise
        return request.answer

    def probe(self, spec: ModelSpec) -> None:
        """One real inference, of air.

        A model whose process died stays "ready" at the server; only an inference shows it.

        Raises:
            Unavailable: it fails.
        """
        air = np.full(tuple(reversed(spec.patch)), spec.hu_window[0], np.float32)
        self.submit(spec, air).result(timeout=self._options.inference_timeout_s + CONTROL_TIMEOUT_S)

    def answered_within(self, spec: ModelSpec, seconds: float) -> bool:
        """Whether the last inference of `spec` succeeded, at most `seconds` ago."""
        last = self._last_answer.get(spec.ref)
        return last is not None and time.monotonic() - last <= seconds

    def close(self) -> None:
        """Take all regions back and unlink them. Later calls fail."""
        if not self._pool.stop():
            return
        for request in list(self._under_way):
            request.answer.cancel()
        self._pool.wait_until_free()
        self._recoveries.put(None)
        self._recovery.join()
        self._pool.close()
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

    def _send(self, request: _Request, transport: TensorTransport) -> None:
        buffers, spec = request.buffers, request.spec
        assert buffers.window is not None
        with buffers.lock:
            if buffers.tensor is None:
                buffers.tensor = transport.stage(buffers, buffers.window)
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
        request: _Request,
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
        request: _Request,
        soft: NDArray[np.uint8] | None,
        failure: AtlasError | None,
        *,
        unanswered: bool,
        started: float,
    ) -> None:
        if soft is not None:
            self._last_answer[request.spec.ref] = time.monotonic()
            self._pool.outage = None
        elif not request.answer.cancelled():
            self._last_answer.pop(request.spec.ref, None)
        if isinstance(failure, ServerUnreachable):
            self._pool.outage = failure
        self._release(request, unanswered=unanswered)
        if self._on_answer is not None and not request.answer.cancelled():
            self._on_answer(request.spec, time.monotonic() - started, outcome_label(failure))
        if request.answer.set_running_or_notify_cancel():
            if soft is not None:
                request.answer.set_result(soft)
            else:
                request.answer.set_exception(failure)

    def _release(self, request: _Request, *, unanswered: bool = False) -> None:
        self._under_way.discard(request)
        if self._pool.release(request.buffers, unanswered=unanswered):
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
                if isinstance(item, _Request):
                    self._repeat(item)
                else:
                    quarantined.append(item)
                    pause = first
            quarantined = [buffers for buffers in quarantined if not self._pool.reclaim(buffers)]

    def _repeat(self, request: _Request) -> None:
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
