"""The model servers as one: which models are in service, and windows predicted by them.

Every window goes to the server with the fewest in flight, of those that have its models. What a
server loses is sent to another one; nothing is ever cancelled (decision 43). With one server all of
this comes to: that one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from atlas_core.addresses import Endpoint, endpoints
from atlas_core.errors import AtlasError, InvalidInput, Unavailable
from atlas_core.model_spec import ModelSpec
from numpy.typing import NDArray

from atlas_attention.triton.client import CONTROL_TIMEOUT_S, TritonOptions
from atlas_attention.triton.ensemble import ServerModels, agreed
from atlas_attention.triton.replica import OnAnswer, TritonReplica, WindowRequest
from atlas_attention.triton.window_buffers import WindowBuffers

RESOLVE_EVERY_S = 1.0
"""Time between two looks which servers the addresses stand for."""

ASKED_AT_ONCE = 16
"""Servers."""


class TritonPredictor:
    """Predicts windows with the models that Triton has in service. Thread-safe.

    Nothing is connected until the first call, so servers may come up later, and more of them as the
    addresses resolve to more. `close` gives every region back.

    Args:
        on_answer: called after every inference with model, seconds, and its `outcome_label`.
    """

    def __init__(self, options: TritonOptions, on_answer: OnAnswer | None = None) -> None:
        self._options = options
        self._on_answer = on_answer
        self._changed = threading.Condition(threading.RLock())
        self._stopped = False
        self._replicas: tuple[TritonReplica, ...] = ()
        self._agreed: ServerModels | None = None
        self._resolving = threading.Lock()
        self._resolved_at = -RESOLVE_EVERY_S
        self._askers = ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="triton-ask")
        self._asked: dict[TritonReplica, Future[ServerModels]] = {}
        # gRPC's own threads, in which a loss is noticed, must not wait for another server.
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="triton-again")

    @property
    def buffers_in_use(self) -> int:
        """Windows in flight, and buffers that a server has not released yet."""
        return sum(replica.pool.in_use for replica in self._replicas)

    @property
    def regions(self) -> int:
        """Regions of shared memory that exist now."""
        return sum(replica.pool.regions for replica in self._replicas)

    def ready_models(self) -> tuple[ModelSpec, ...]:
        """All versions of all models that are ready, by name and version.

        Raises:
            Unavailable: no server answers.
            ConfigurationError: a model describes itself wrongly.
        """
        return self.server_models().ready

    def ensemble(self, wanted: Sequence[str] = ()) -> tuple[ModelSpec, ...]:
        """The voices of the ensemble in use, or the models asked for; see `ServerModels.choose`.

        Raises:
            Unavailable: no server answers, or none has a model in service.
            NotFound: a wanted model is not in service.
            InvalidInput: a malformed reference, or a model wanted twice.
        """
        return self.server_models().choose(models=wanted).voices

    def server_models(self) -> ServerModels:
        """What the servers have loaded, and which ensembles that makes; see `agreed`.

        Raises:
            Unavailable: no server answers.
            ConfigurationError: a model describes itself, or an ensemble, wrongly.
        """
        replicas = self._current()
        said = [replicas[0].server_models()] if len(replicas) == 1 else self._ask(replicas)
        self._agreed = agreed(said, self._agreed)
        return self._agreed

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
            Unavailable: no server is reachable, the model's process is dead, or a deadline passed.
            ConfigurationError: model and description do not fit together.
        """
        expected = tuple(reversed(spec.patch))
        if window.shape != expected or window.dtype != np.float32:
            raise InvalidInput(
                f"window for model {spec.name} has a wrong form",
                expected=f"float32 {expected}",
                got=f"{window.dtype} {window.shape}",
            )
        request = WindowRequest(spec, window)
        self._send(request)
        return request.answer

    def probe(self, spec: ModelSpec) -> None:
        """One real inference, of air, by every server that has the model.

        A model whose process died stays "ready" at the server; only an inference shows it.

        Raises:
            Unavailable: it fails everywhere.
        """
        air = np.full(tuple(reversed(spec.patch)), spec.hu_window[0], np.float32)
        replicas = self._current()
        asked = [one for one in replicas if one.reachable and one.has(spec)] or list(replicas)
        failures: list[AtlasError] = []
        for replica in asked:
            request = WindowRequest(spec, air, lost={one for one in replicas if one is not replica})
            try:
                self._send(request)
                request.answer.result(self._options.inference_timeout_s + CONTROL_TIMEOUT_S)
            except AtlasError as failure:
                failures.append(failure)
        if len(failures) == len(asked):
            raise failures[0]

    def answered_within(self, spec: ModelSpec, seconds: float) -> bool:
        """Whether the last inference of `spec`, by every server that has it, succeeded at most
        `seconds` ago."""
        having = [one for one in self._replicas if one.reachable and one.has(spec)]
        return bool(having) and all(one.answered_within(spec, seconds) for one in having)

    def close(self) -> None:
        """Take all regions back and unlink them. Later calls fail."""
        with self._changed:
            if self._stopped:
                return
            self._stopped = True
            self._changed.notify_all()
        for replica in self._replicas:
            replica.close()
        self._sender.shutdown()
        self._askers.shutdown()

    def _current(self) -> tuple[TritonReplica, ...]:
        """The servers that the addresses stand for now, one at least.

        Raises:
            Unavailable: they cannot be resolved.
        """
        if self._stopped:
            raise Unavailable("the attention service is stopping")
        if time.monotonic() - self._resolved_at >= RESOLVE_EVERY_S:
            if not self._replicas:
                self._resolve()
            elif not self._resolving.locked():  # a name server that is slow holds up no window
                with contextlib.suppress(RuntimeError):  # shut down this very moment
                    self._askers.submit(self._resolve)
        if not self._replicas:
            raise Unavailable(
                "no model server is to be found",
                got=self._options.address,
                remedy="start it, or wait for it",
            )
        return self._replicas

    def _resolve(self) -> None:
        with self._resolving:
            if time.monotonic() - self._resolved_at < RESOLVE_EVERY_S:
                return
            known = [replica.endpoint for replica in self._replicas]
            self._replace(endpoints(self._options.address, known))
            self._resolved_at = time.monotonic()

    def _replace(self, found: Sequence[Endpoint]) -> None:
        """Serve by `found`; servers that are known already stay as they are."""
        before = {replica.endpoint: replica for replica in self._replicas}
        with self._changed:
            if self._stopped:
                return
            now = tuple(before.get(endpoint) or self._replica(endpoint) for endpoint in found)
            self._replicas = now
            self._changed.notify_all()
        for replica in set(before.values()) - set(now):
            self._asked.pop(replica, None)
            self._askers.submit(replica.retire)

    def _replica(self, endpoint: Endpoint) -> TritonReplica:
        return TritonReplica(
            endpoint, self._options, self._changed, self._take_back, self._on_answer
        )

    def _ask(self, replicas: Sequence[TritonReplica]) -> list[ServerModels]:
        """What all servers say that answer; nobody waits for one that was silent the last time."""
        asked = {}
        for replica in replicas:
            before = self._asked.get(replica)
            if not replica.silent or before is None or before.done():
                self._asked[replica] = self._askers.submit(replica.server_models)
            asked[replica] = self._asked[replica]
        awaited = [one for one in replicas if not one.silent] or replicas
        said, failures = [], []
        for replica in awaited:
            try:
                said.append(asked[replica].result())
            except Unavailable as failure:
                failures.append(failure)
        if not said:
            raise failures[0]
        return said

    def _send(self, request: WindowRequest) -> None:
        """To the server with the fewest windows, or the next where that fails.

        Raises:
            Unavailable, ConfigurationError: see `submit`.
        """
        while True:
            replica, buffers = self._place(request)
            try:
                return replica.send(request, buffers)
            except Unavailable:
                if not self._may_go_elsewhere(request, replica):
                    raise

    def _place(self, request: WindowRequest) -> tuple[TritonReplica, WindowBuffers]:
        """Buffers for the window: where other models have it, else where the fewest are in flight.

        Raises:
            Unavailable: none became free in time, no server can be reached, or this is closed.
        """
        deadline = time.monotonic() + self._options.inference_timeout_s
        self._current()
        with self._changed:
            while True:
                if self._stopped:
                    raise Unavailable("the attention service is stopping")
                candidates = self._candidates(request)
                for replica in candidates:
                    buffers = replica.pool.acquire(request.window)
                    if buffers is not None:
                        return replica, buffers
                outages = [one.pool.outage for one in candidates if one.pool.outage is not None]
                if len(outages) == len(candidates):
                    raise outages[0]
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Unavailable(
                        "the model server did not free a place for a window",
                        expected=f"within {self._options.inference_timeout_s:g} s",
                        remedy="see whether its models still answer",
                    )
                self._changed.wait(left)

    def _candidates(self, request: WindowRequest) -> Sequence[TritonReplica]:
        """Where the window may go, the best first: what answers and has the model, as long as there
        is such a one."""
        spec, replicas = request.spec, self._replicas
        if len(replicas) == 1:
            return replicas
        left = [one for one in replicas if one not in request.lost] or list(replicas)
        reachable = [one for one in left if one.reachable] or left
        having = [one for one in reachable if one.has(spec)] or reachable
        healthy = [one for one in having if spec.ref not in one.failing] or having
        holding = [one for one in healthy if one.pool.holds(request.window)]
        return holding or sorted(healthy, key=lambda one: (one.pool.in_use, one.sent))

    def _may_go_elsewhere(self, request: WindowRequest, replica: TritonReplica) -> bool:
        """Notes that `replica` lost the request; False: so did every other one, or nobody waits."""
        request.lost.add(replica)
        if self._stopped or request.answer.cancelled():
            return False
        return any(one not in request.lost for one in self._replicas)

    def _take_back(
        self, replica: TritonReplica, request: WindowRequest, _failure: Unavailable
    ) -> bool:
        """Runs in gRPC's own thread; see `TritonReplica`."""
        if not self._may_go_elsewhere(request, replica):
            return False
        try:
            self._sender.submit(self._send_again, request)
        except RuntimeError:  # it is shut down
            return False
        return True

    def _send_again(self, request: WindowRequest) -> None:
        try:
            self._send(request)
        except AtlasError as failure:
            if request.answer.set_running_or_notify_cancel():
                request.answer.set_exception(failure)
