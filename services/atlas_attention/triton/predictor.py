"""The model server: which models it has in service, and windows predicted by them.

The only module of the service that imports tritonclient. Windows travel through system shared
memory where the server can map it, else as plain gRPC tensors; both give the same bytes.

A *berth* holds one window on its way: one input region, which all models of the ensemble read, and
one output region per model. The number of berths bounds memory and the work in the server. A
berth whose request ended without an answer (timed out, connection lost) is quarantined: the server
may still read or write its regions, so they are used again only after the server has let go of
them.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tritonclient.grpc as triton
from atlas_core.errors import (
    AtlasError,
    ConfigurationError,
    InvalidInput,
    Unavailable,
)
from atlas_core.model_spec import ModelRef, ModelSpec
from atlas_core.tls import TlsFiles, tritonclient_arguments
from tritonclient.utils import InferenceServerException

from atlas_attention.fusion import DeviceName
from atlas_attention.triton.cuda_shared_memory import CudaRegion
from atlas_attention.triton.ensemble import _described, _told_in_service, choose
from atlas_attention.triton.errors import (
    _Away,
    _not_loaded,
    _region_unknown,
    _server_errors,
    _status,
    _translate,
    _unanswered,
)
from atlas_attention.triton.shared_memory import PREFIX, SHARED_MEMORY, Region, sweep
from atlas_attention.triton.tensors import (
    CONTROL_TIMEOUT_S,
    AnyRegion,
    Soft,
    Window,
    _Berth,
    _Carrier,
    _PlainTensors,
    _register,
    _Request,
    _SharedTensors,
    _unregister,
)

Transport = Literal["auto", "cuda", "system", "none"]


QUARANTINE_PAUSE_S = (0.02, 1.0)
"""First and longest pause between two attempts to take regions back from the server."""

CLOSE_TIMEOUT_S = 10.0
"""How long `close` waits for the server to let go of regions; they are unlinked in any case."""


CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # The default waits up to two minutes before it looks for a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Triton's regions are this machine's: a proxy from the environment is never meant.
    ("grpc.enable_http_proxy", 0),
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TritonOptions:
    """How to reach the model server.

    Attributes:
        address: host:port of its gRPC endpoint.
        shared_memory: ``cuda``, ``system``, ``none``, or ``auto``: the first of those, cuda only on
            a GPU, that the server can map.
        windows_in_flight: windows on their way at once, each to all models.
        inference_timeout_s: deadline of one inference, and of the wait for a berth.
        device: where answers are wanted; by ``cuda`` shared memory they never leave the GPU.
        tls: this end of mutual TLS; None: the connection is neither encrypted nor proved.
    """

    address: str
    shared_memory: Transport = "auto"
    windows_in_flight: int = 4
    inference_timeout_s: float = 60.0
    device: DeviceName = "cpu"
    tls: TlsFiles | None = None


class TritonPredictor:
    """Predicts windows with the models that Triton has in service. Thread-safe.

    Nothing is connected until the first call, so the server may come up later. `close` gives every
    region back.

    Args:
        on_answer: called after every inference with model, seconds, and None or the failure.
    """

    def __init__(
        self,
        options: TritonOptions,
        on_answer: Callable[[ModelSpec, float, AtlasError | None], None] | None = None,
    ) -> None:
        self._options = options
        self._on_answer = on_answer
        self._client = triton.InferenceServerClient(
            options.address,
            channel_args=list(CHANNEL_OPTIONS),
            **tritonclient_arguments(options.tls),
        )
        self._berths = [_Berth() for _ in range(options.windows_in_flight)]
        self._changed = threading.Condition(threading.RLock())
        self._away: Unavailable | None = None
        self._closed = False
        self._carrier: _Carrier | None = None
        self._carrier_lock = threading.Lock()
        self._under_way: set[_Request] = set()
        self._proofs: dict[ModelRef, float] = {}
        self._chores: queue.SimpleQueue[_Request | _Berth | None] = queue.SimpleQueue()
        self._keeper = threading.Thread(target=self._keep, name="triton-keeper", daemon=True)
        self._keeper.start()

    @property
    def windows_in_flight(self) -> int:
        """Most windows on their way at once."""
        return self._options.windows_in_flight

    @property
    def berths_in_use(self) -> int:
        """Windows on their way, or regions that the server has not let go of yet."""
        with self._changed:
            return sum(berth.window is not None for berth in self._berths)

    @property
    def regions(self) -> int:
        """Regions of shared memory that exist now."""
        with self._changed:
            return sum(len(berth.regions()) for berth in self._berths)

    def served(self) -> tuple[ModelSpec, ...]:
        """All versions of all models that are ready, by name and version.

        Raises:
            Unavailable: the server does not answer.
            ConfigurationError: a model describes itself wrongly.
        """
        return self._look()[0]

    def _look(self) -> tuple[tuple[ModelSpec, ...], dict[str, int | None]]:
        """What is ready, and by model the version in service where the server tells it."""
        specs: list[ModelSpec] = []
        in_service: dict[str, int | None] = {}
        with _server_errors():
            # Not the repository's index: to Triton that is model control, which a deployment keeps
            # to the flows. Statistics name what is ready, too.
            ready = self._client.get_inference_statistics(client_timeout=CONTROL_TIMEOUT_S)
            for name, version in sorted({(m.name, m.version) for m in ready.model_stats}):
                parameters = self._parameters(name, version)
                specs.extend(_described(parameters, name, version))
                in_service.update(_told_in_service(parameters, name))
        return tuple(sorted(specs, key=lambda spec: (spec.name, spec.version))), in_service

    def ensemble(self, wanted: Sequence[str] = ()) -> tuple[ModelSpec, ...]:
        """The models asked for, or of every model the version in service; see `choose`.

        Raises:
            Unavailable: the server does not answer, or has no model in service.
            NotFound: a wanted model is not in service.
            InvalidInput: a malformed reference, or a model wanted twice.
        """
        served, in_service = self._look()
        chosen = choose(served, wanted, in_service)
        if not chosen:
            raise Unavailable(
                "no model is in service", remedy="install models and load them into the server"
            )
        return chosen

    def submit(self, spec: ModelSpec, window: Window) -> Future[Soft]:
        """Predict one window with one model.

        Blocks while all berths are taken. The window may be submitted to several models; it is
        staged once, and must not change before all of them have answered. Cancelling the future
        gives up its answer; the inference runs to its end all the same, since Triton may crash when
        a call is cancelled (decision 43).

        Args:
            window: float32 ``[z, y, x]`` of `spec.patch`, Hounsfield units, C-contiguous.

        Returns:
            uint8 ``[organ, z, y, x]``, or one of the errors below.

        Raises:
            Unavailable: the server is away, the model's process is dead, or a deadline passed.
            ConfigurationError: model and description do not fit together.
        """
        expected = tuple(reversed(spec.patch))
        if window.shape != expected or window.dtype != np.float32:
            raise InvalidInput(
                f"window for model {spec.name} has a wrong form",
                expected=f"float32 {expected}",
                got=f"{window.dtype} {window.shape}",
            )
        carrier = self._settled_carrier()
        request = _Request(spec, self._take(window), Future())
        self._under_way.add(request)
        try:
            with _server_errors():
                self._send(request, carrier)
        except BaseException:
            self._leave(request)
            raise
        return request.answer

    def probe(self, spec: ModelSpec) -> None:
        """One real inference, of air.

        A model whose process died stays "ready" at the server; only an inference tells.

        Raises:
            Unavailable: it fails.
        """
        air = np.full(tuple(reversed(spec.patch)), spec.hu_window[0], np.float32)
        self.submit(spec, air).result(timeout=self._options.inference_timeout_s + CONTROL_TIMEOUT_S)

    def proven(self, spec: ModelSpec, within_s: float) -> bool:
        """Whether the last inference of `spec` worked, and lies no longer back than `within_s`."""
        last = self._proofs.get(spec.ref)
        return last is not None and time.monotonic() - last <= within_s

    def close(self) -> None:
        """Take all regions back and unlink them. Later calls fail."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            under_way = list(self._under_way)
        for request in under_way:
            request.answer.cancel()
        with self._changed:
            self._changed.wait_for(
                lambda: not self.berths_in_use or self._away is not None, CLOSE_TIMEOUT_S
            )
        self._chores.put(None)
        self._keeper.join()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for berth in self._berths:
            # What was just answered may count as in use for a moment.
            while self._away is None and not self._release(berth):
                if time.monotonic() > deadline:
                    _log.warning("the model server still uses shared regions; they are unlinked")
                    break
                time.sleep(QUARANTINE_PAUSE_S[0])
            for region in berth.regions():
                region.close()
        self._client.close()

    def _parameters(self, name: str, version: str) -> Mapping[str, str]:
        """What the server carries for a version; nothing if it was unloaded since it was listed."""
        try:
            config = self._client.get_model_config(name, version, client_timeout=CONTROL_TIMEOUT_S)
        except InferenceServerException as error:
            if _not_loaded(error):
                return {}
            raise
        return {key: value.string_value for key, value in config.config.parameters.items()}

    def _settled_carrier(self) -> _Carrier:
        with self._carrier_lock:
            if self._carrier is None:
                self._carrier = self._choose_carrier()
            return self._carrier

    def _choose_carrier(self) -> _Carrier:
        wanted = self._options.shared_memory
        kinds: list[tuple[Transport, Callable[[int], AnyRegion]]] = [("system", Region)]
        if self._options.device == "cuda":
            kinds.insert(0, ("cuda", CudaRegion))
        for kind, new_region in kinds:
            if wanted not in ("auto", kind):
                continue
            try:
                with _server_errors():
                    self._sweep()
                    self._try_shared_memory(new_region)
            except ConfigurationError as error:
                if wanted == kind:
                    raise
                _log.warning("windows do not go by %s shared memory: %s", kind, error)
            else:
                return _SharedTensors(self._client, new_region)
        return _PlainTensors()

    def _sweep(self) -> None:
        """Unlink regions of dead processes, and make the server let go of what is unlinked."""
        for name in sweep():
            _log.info("swept a shared region of a dead process", extra={"fields": {"region": name}})
        status = self._client.get_system_shared_memory_status(client_timeout=CONTROL_TIMEOUT_S)
        for name in status.regions:
            if name.startswith(PREFIX) and not (SHARED_MEMORY / name).exists():
                with contextlib.suppress(InferenceServerException):
                    self._client.unregister_system_shared_memory(
                        name, client_timeout=CONTROL_TIMEOUT_S
                    )
        if self._options.device == "cuda":
            self._sweep_cuda()

    def _sweep_cuda(self) -> None:
        """The same for regions of GPU memory, whose names tell the life of their owners too."""
        # A server built without CUDA refuses even to be asked.
        with contextlib.suppress(InferenceServerException):
            status = self._client.get_cuda_shared_memory_status(client_timeout=CONTROL_TIMEOUT_S)
            for name in status.regions:
                if name.startswith(PREFIX) and not (SHARED_MEMORY / name).exists():
                    self._client.unregister_cuda_shared_memory(
                        name, client_timeout=CONTROL_TIMEOUT_S
                    )

    def _try_shared_memory(self, new_region: Callable[[int], AnyRegion]) -> None:
        region = new_region(1)
        try:
            _register(self._client, region)
            _unregister(self._client, region)
        except InferenceServerException as error:
            failure = _translate(error)
            if isinstance(failure, Unavailable) and _status(error) == "UNAVAILABLE":
                raise
            raise ConfigurationError(
                "the model server cannot map this machine's shared memory",
                got=error.message(),
                remedy="share /dev/shm (for cuda also the GPU and the IPC namespace) with it, or "
                "set shared_memory=none",
            ) from None
        finally:
            region.close()

    def _take(self, window: Window) -> _Berth:
        """The berth that holds `window` already, or a free one; one more request is pending."""
        deadline = time.monotonic() + self._options.inference_timeout_s
        with self._changed:
            while True:
                if self._closed:
                    raise Unavailable("the attention service is stopping")
                joined = (b for b in self._berths if b.window is window and not b.quarantined)
                free = (b for b in self._berths if b.window is None)
                berth = next(joined, None) or next(free, None)
                if berth is not None:
                    berth.window = window
                    berth.pending += 1
                    return berth
                if self._away is not None:
                    raise self._away
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Unavailable(
                        "the model server did not free a place for a window",
                        expected=f"within {self._options.inference_timeout_s:g} s",
                        remedy="see whether its models still answer",
                    )
                self._changed.wait(left)

    def _send(self, request: _Request, carrier: _Carrier) -> None:
        berth, spec = request.berth, request.spec
        assert berth.window is not None
        with berth.lock:
            if berth.tensor is None:
                berth.tensor = carrier.stage(berth, berth.window)
            output = carrier.request(berth, spec)
        started = time.monotonic()
        self._client.async_infer(
            spec.name,
            [berth.tensor],
            lambda result, error: self._answered(request, carrier, result, error, started),
            model_version=str(spec.triton_version),
            outputs=[output],
            client_timeout=self._options.inference_timeout_s,
        )

    def _answered(
        self,
        request: _Request,
        carrier: _Carrier,
        result: triton.InferResult | None,
        error: InferenceServerException | None,
        started: float,
    ) -> None:
        """Runs in gRPC's own thread: nothing here may wait for the server."""
        soft: Soft | None = None
        failure: AtlasError | None = None
        if error is not None:
            if _region_unknown(error) and not request.repeated:
                request.repeated = True  # the server was restarted since the region was registered
                self._chores.put(request)
                return
            failure = _translate(error, request.spec)
        else:
            try:
                soft = carrier.read(request.berth, request.spec, result)
            except AtlasError as unreadable:
                failure = unreadable
        self._finish(request, soft, failure, unanswered=_unanswered(error), started=started)

    def _finish(
        self,
        request: _Request,
        soft: Soft | None,
        failure: AtlasError | None,
        *,
        unanswered: bool,
        started: float,
    ) -> None:
        if soft is not None:
            self._proofs[request.spec.ref] = time.monotonic()
            self._away = None
        elif not request.answer.cancelled():
            self._proofs.pop(request.spec.ref, None)
        if isinstance(failure, _Away):
            self._away = failure
        self._leave(request, unanswered=unanswered)
        if self._on_answer is not None and not request.answer.cancelled():
            self._on_answer(request.spec, time.monotonic() - started, failure)
        if request.answer.set_running_or_notify_cancel():
            if soft is not None:
                request.answer.set_result(soft)
            else:
                request.answer.set_exception(failure)

    def _leave(self, request: _Request, *, unanswered: bool = False) -> None:
        berth = request.berth
        with self._changed:
            self._under_way.discard(request)
            berth.tainted |= unanswered
            berth.pending -= 1
            if berth.pending:
                return
            if berth.tainted and berth.registered:
                berth.quarantined = True
                self._chores.put(berth)
            else:
                self._free(berth)

    def _free(self, berth: _Berth) -> None:
        with self._changed:
            berth.window, berth.tensor = None, None
            berth.tainted = berth.quarantined = False
            self._changed.notify_all()

    def _keep(self) -> None:
        """Thread that waits for the server where gRPC's callbacks must not."""
        quarantined: list[_Berth] = []
        first, longest = QUARANTINE_PAUSE_S
        pause = first
        while True:
            try:
                chore = self._chores.get(timeout=pause if quarantined else None)
            except queue.Empty:
                pause = min(2 * pause, longest)
            else:
                if chore is None:
                    return
                if isinstance(chore, _Request):
                    self._repeat(chore)
                else:
                    quarantined.append(chore)
                    pause = first
            quarantined = [berth for berth in quarantined if not self._reclaim(berth)]

    def _reclaim(self, berth: _Berth) -> bool:
        if not self._release(berth):
            return False
        self._free(berth)
        return True

    def _release(self, berth: _Berth) -> bool:
        """Make the server let go of the regions of `berth`; False while it does not."""
        for region in berth.regions():
            if region.name not in berth.registered:
                continue
            try:
                _unregister(self._client, region)
            except InferenceServerException as error:
                failure = _translate(error)
                if isinstance(failure, _Away):
                    self._away = failure
                    return False
                if "in use" in error.message() or _status(error) == "DEADLINE_EXCEEDED":
                    return False
                # Any other refusal means that the server does not know the region (any more).
            self._away = None
            berth.registered.discard(region.name)
        return True

    def _repeat(self, request: _Request) -> None:
        """Register the regions of a request with a server that was restarted, and send it again."""
        if request.answer.cancelled():
            self._leave(request)
            return
        started = time.monotonic()
        berth = request.berth
        try:
            with _server_errors():
                with berth.lock:
                    for region in berth.regions():
                        _register(self._client, region)
                        berth.registered.add(region.name)
                self._send(request, self._settled_carrier())
        except AtlasError as failure:
            self._finish(request, None, failure, unanswered=False, started=started)
