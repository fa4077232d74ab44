"""The models of running Tritons: put into service, proved by a real inference, and mended.

Where several servers serve one repository, what is done is done at all of them. Triton calls a
model ready although the process behind it was killed, so only an inference tells.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import tritonclient.grpc as triton
from atlas_core.addresses import Endpoint, endpoints
from atlas_core.errors import ConfigurationError, Unavailable
from atlas_core.model_spec import INPUT_NAME, MAX_MODEL_STREAMS, OUTPUT_NAME, ModelSpec
from atlas_core.tls import TlsFiles, channel_options, tritonclient_arguments
from atlas_models.serving import (
    CpuServing,
    TritonRepository,
    exported_models,
    in_service_of,
    read_spec,
    specs_in,
)
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from atlas_embedded.settings import EmbeddedSettings

_CALL_TIMEOUT_S = 10.0
"""For calls that the server answers from memory."""

_INFERENCE_TIMEOUT_S = 30.0
"""For one window; on a busy server it waits behind the windows of the attention service."""

_RUNS_BY = re.compile(r"\b(\w+) (\d+) runs by (\w+) in (\w+)")
"""As the Python backend of `atlas_models.serving` says it."""

_SERVER_AWAY = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
"""A server that is gone or hangs, rather than one that refuses."""

CONTROL_HEADER = "triton-grpc-protocol-atlasloop-control"
"""Carries the secret where Triton runs with
``--grpc-restricted-protocol=model-repository:atlasloop-control=SECRET``."""

_RESTRICTED = "protocol is restricted"
"""In Triton's refusal of a call without the secret; its status is the one of a server away."""

_POLL_S = 0.05

_SEEN_POLL_S = 1.0
"""Each look loads the model again."""

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_CHANNEL = [
    ("grpc.enable_http_proxy", 0),  # the server is on this machine: a proxy is never meant
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]


def repository_of(settings: EmbeddedSettings) -> TritonRepository:
    """The model repository of a stack, as it is."""
    models = len(TritonRepository(settings.repository, CpuServing()).models())
    streams = settings.model_streams or min(_cores(), MAX_MODEL_STREAMS)
    return TritonRepository(
        settings.repository,
        CpuServing(
            runtime=settings.model_runtime,
            precision=settings.model_precision,
            threads=settings.model_threads or math.ceil(_cores() / max(1, models * streams)),
            streams=streams,
            cache_dir=settings.seen_by_triton(settings.compiled_models),
        ),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def install_models(settings: EmbeddedSettings) -> None:
    """Fills a new repository with the models of ``models_dir``, and brings the configuration up to
    date.

    Once it was filled, what it serves is the site's decision: versions come by promotion, models by
    `atlasloop ensemble add`, and none by a new checkout.

    Raises:
        ConfigurationError: neither the repository nor ``models_dir`` holds a model.
    """
    repository = repository_of(settings)
    fill(repository, settings.models_dir)
    repository = repository_of(settings)  # each model's share of the cores follows their number
    if not repository.models():
        raise ConfigurationError(
            "there is no model to serve",
            expected=f"exported models (NAME/model.json) in {settings.models_dir}",
            remedy="set ATLASLOOP_MODELS_DIR, or train some with `make demo-models`",
        )
    repository.configure()


def fill(repository: TritonRepository, models: Path | None) -> None:
    """Installs the exported models in folder `models` whose name is new, unless the repository was
    filled before."""
    if models is None or (repository.is_prepared and repository.models()):
        return
    for exported in exported_models(models):
        if not repository.installed(read_spec(exported).name):
            repository.install(exported)


@dataclass(frozen=True)
class TritonModels:
    """The models that the running servers of one repository should serve, each of them all.

    Attributes:
        address: host:port of gRPC endpoints, comma-separated; a name stands for every server that
            it resolves to.
        repository: what it should serve.
        load_timeout_s: for loading one model; a cold compilation takes seconds.
        log: of a server on this machine, which says there by what each model runs.
        control_key: secret of the server's restricted model control; None: it has none.
        tls: this end of the connection; None: neither encrypted nor proved.
        seen_timeout_s: until the server sees what was written to its repository; a client of NFS
            looks again after a minute.
    """

    address: str
    repository: TritonRepository
    load_timeout_s: float
    log: Path | None = None
    control_key: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None
    seen_timeout_s: float = 90.0

    @contextlib.contextmanager
    def _client(self, server: Endpoint) -> Iterator[triton.InferenceServerClient]:
        client = triton.InferenceServerClient(
            server.address,
            channel_args=[*_CHANNEL, *channel_options(self.tls, server.name)],
            **tritonclient_arguments(self.tls),
        )
        try:
            yield client
        except InferenceServerException as error:
            raise Unavailable(
                f"the model server at {server.address} does not answer", got=error.message()
            ) from None
        finally:
            client.close()

    def _everywhere(self, do: Callable[[triton.InferenceServerClient], ResultT]) -> list[ResultT]:
        """What `do` returns for every server; all have ended when it fails for one."""
        servers = endpoints(self.address)
        if not servers:
            raise Unavailable("no model server is to be found", got=self.address)

        def at(server: Endpoint) -> ResultT:
            with self._client(server) as client:
                return do(client)

        with ThreadPoolExecutor(len(servers)) as pool:
            return list(pool.map(at, servers))

    def require_alive(self) -> str:
        """Raises `Unavailable` unless every server answers."""
        alive = self._everywhere(lambda one: one.is_server_live(client_timeout=_CALL_TIMEOUT_S))
        if not all(alive):
            raise Unavailable("the server answers, but is not live")
        return "live"

    def put_into_service(self) -> None:
        """Loads what its ensembles need and is not served as the repository has it; reloads what
        fails an inference.

        Raises:
            ConfigurationError: the server refuses a model.
            Unavailable: the server is away, or a model answers wrongly even after a reload.
        """
        names = self.repository.needed()

        def settle(client: triton.InferenceServerClient) -> None:
            with ThreadPoolExecutor(max(1, len(names))) as pool:
                # One model waits for the disk while another is compiled.
                list(pool.map(lambda name: self._settle(client, name), names))

        self._everywhere(settle)

    def require_answers(self) -> str:
        """Runs every version of every model once; a word on each for people.

        Raises:
            Unavailable: one is not served, or answers wrongly.
        """
        specs = [s for name in self.repository.needed() for s in self.repository.served(name)]
        self._everywhere(lambda client: [self._infer(client, spec) for spec in specs])
        runtimes = self._runtimes()
        by_runtime: dict[str, list[str]] = {}
        for spec in specs:
            runtime = runtimes.get((spec.name, str(spec.triton_version)), "?")
            by_runtime.setdefault(runtime, []).append(f"{spec.name}@{spec.version}")
        return "; ".join(f"{', '.join(models)} by {how}" for how, models in by_runtime.items())

    def _runtimes(self) -> dict[tuple[str, str], str]:
        """What each model version really runs by, as it last said in the server's log."""
        if self.log is None or not self.log.is_file():
            return {}
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            said = [match for line in lines if (match := _RUNS_BY.search(line))]
        return {(match[1], match[2]): f"{match[3]} {match[4]}" for match in said}

    def load(self, name: str) -> None:
        """Has every server serve model `name` as the repository says now.

        What one served before keeps answering until the new state is complete, and stays if that
        fails.

        Raises:
            ConfigurationError: a server refuses it, or reads another repository.
            Unavailable: a server is away.
        """
        self._everywhere(lambda client: self._load_as_written(client, name))

    def unload(self, name: str) -> None:
        """Has the servers let go of model `name`, and waits for it.

        Raises:
            Unavailable: a server is away, or does not unload it.
        """
        specs = self.repository.installed(name)
        self._everywhere(lambda client: self._unload(client, name, specs))

    def is_loaded(self, name: str) -> bool:
        """Whether every server has model `name` loaded just as the repository says."""
        specs = self.repository.served(name)
        return all(self._everywhere(lambda client: self._served(client, name, specs)))

    def prove(self, spec: ModelSpec) -> None:
        """Runs one version on air and on noise.

        Raises:
            Unavailable: it fails, or answers in another form or the same for both.
        """
        self._everywhere(lambda client: self._prove(client, spec))

    def answers(self, spec: ModelSpec, window: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
        """What each server answers to a window of HU ``[z, y, x]``, uint8 ``[organ, z, y, x]``.

        Raises:
            Unavailable: one fails, or answers in another form.
        """
        return self._everywhere(lambda client: self._infer(client, spec, window)[0])

    def windows_a_second(
        self, spec: ModelSpec, window: NDArray[np.float32], *, count: int, at_once: int
    ) -> list[float]:
        """How many windows each server predicts in a second, of `count`, `at_once` at a time."""

        def measure(client: triton.InferenceServerClient) -> float:
            began = time.perf_counter()
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(lambda _: self._infer(client, spec, window), range(count)))
            return count / (time.perf_counter() - began)

        return self._everywhere(measure)

    def _prove(self, client: triton.InferenceServerClient, spec: ModelSpec) -> None:
        z, y, x = reversed(spec.patch)
        noise = np.random.default_rng(0).normal(40.0, 200.0, (z, y, x)).astype(np.float32)
        if np.array_equal(self._infer(client, spec), self._infer(client, spec, noise)):
            raise Unavailable(
                f"model {spec.name}@{spec.version} answers the same to air and to noise",
                remedy="its weights or its normalisation are broken: export it again",
            )

    def _load_as_written(self, client: triton.InferenceServerClient, name: str) -> None:
        self._load(client, name)
        deadline = time.monotonic() + self.seen_timeout_s
        while not self._has_seen(client, name):
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"the server does not see what was written for model {name}",
                    expected=f"Triton's own model repository in {self.repository.root}",
                    remedy="set ATLASLOOP_MODEL_REPOSITORY to the volume that Triton reads",
                )
            time.sleep(_SEEN_POLL_S)
            self._load(client, name)

    def _settle(self, client: triton.InferenceServerClient, name: str) -> None:
        try:
            self._serve(client, name)
        except (ConfigurationError, Unavailable) as error:
            # A new version that was being tried when everything stopped, and is broken, must not
            # keep the one in service away.
            kept = self.repository.in_service(name)
            if kept is None or len(self.repository.served(name)) < 2:
                raise
            _log.warning("model %s is served without its other versions: %s", name, error)
            self.repository.serve_only(name, [kept], kept)
            self._serve(client, name)

    def _serve(self, client: triton.InferenceServerClient, name: str) -> None:
        specs = self.repository.served(name)
        if not self._served(client, name, specs):
            self._load(client, name)
        try:
            for spec in specs:
                self._infer(client, spec)
        except Unavailable:
            # Its process was killed: the server notices at an inference, but mends nothing.
            self._unload(client, name, specs)
            self._load(client, name)
            for spec in specs:
                self._infer(client, spec)

    def _has_seen(self, client: triton.InferenceServerClient, name: str) -> bool:
        """Whether what the server loaded is what the repository says."""
        config = client.get_model_config(name, client_timeout=_CALL_TIMEOUT_S).config
        return specs_in(config) == self.repository.served(name) and in_service_of(
            config
        ) == self.repository.in_service(name)

    def _served(
        self, client: triton.InferenceServerClient, name: str, specs: Sequence[ModelSpec]
    ) -> bool:
        """Whether the server serves exactly `specs`, configured as the repository is now."""
        try:
            config = client.get_model_config(name, client_timeout=_CALL_TIMEOUT_S).config
        except InferenceServerException:
            return False
        wanted = self.repository.config(name)
        same = specs_in(config) == tuple(specs) and config.parameters == wanted.parameters
        return same and all(self._ready(client, spec) for spec in specs)

    def _load(self, client: triton.InferenceServerClient, name: str) -> None:
        """Loads; versions that were in service before stay so when this fails."""
        try:
            client.load_model(name, headers=self._control, client_timeout=self.load_timeout_s)
        except InferenceServerException as error:
            if _RESTRICTED in error.message():
                raise ConfigurationError(
                    "the server does not let us control its models",
                    got=error.message(),
                    remedy="set ATLASLOOP_TRITON_CONTROL_KEY to the secret it was started with",
                ) from None
            if error.status() in _SERVER_AWAY:
                raise
            raise ConfigurationError(
                f"the server refuses model {name}",
                got=error.message(),
                remedy="remove the version that is broken, or see `atlasloop logs triton`",
            ) from None

    @property
    def _control(self) -> dict[str, str] | None:
        """Metadata of a call that changes what is loaded."""
        return None if self.control_key is None else {CONTROL_HEADER: self.control_key}

    def _unload(
        self, client: triton.InferenceServerClient, name: str, specs: Sequence[ModelSpec]
    ) -> None:
        """Unloads, and waits for it: the call itself returns before the unload is done."""
        deadline = time.monotonic() + self.load_timeout_s
        with contextlib.suppress(InferenceServerException):  # it was not loaded at all
            client.unload_model(name, headers=self._control, client_timeout=_CALL_TIMEOUT_S)
        while any(self._ready(client, spec) for spec in specs):
            if time.monotonic() > deadline:
                raise Unavailable(f"model {name} does not unload")
            time.sleep(_POLL_S)

    def _ready(self, client: triton.InferenceServerClient, spec: ModelSpec) -> bool:
        try:
            return bool(
                client.is_model_ready(
                    spec.name, str(spec.triton_version), client_timeout=_CALL_TIMEOUT_S
                )
            )
        except InferenceServerException:
            return False

    def _infer(
        self,
        client: triton.InferenceServerClient,
        spec: ModelSpec,
        window: NDArray[np.float32] | None = None,
    ) -> NDArray[np.uint8]:
        """The answer to one window of HU ``[z, y, x]`` (None: zeros)."""
        z, y, x = reversed(spec.patch)
        if window is None:
            window = np.zeros((z, y, x), dtype=np.float32)
        tensor = triton.InferInput(INPUT_NAME, [1, 1, z, y, x], "FP32")
        tensor.set_data_from_numpy(window[None, None])
        try:
            answer = client.infer(
                spec.name,
                [tensor],
                model_version=str(spec.triton_version),
                client_timeout=_INFERENCE_TIMEOUT_S,
            ).as_numpy(OUTPUT_NAME)
        except InferenceServerException as error:
            raise Unavailable(
                f"model {spec.name}@{spec.version} does not answer", got=error.message()
            ) from None
        expected = (1, len(spec.organs), z, y, x)
        if answer is None or answer.shape != expected or answer.dtype != np.uint8:
            raise Unavailable(
                f"model {spec.name}@{spec.version} answers wrongly",
                expected=f"uint8 {expected}",
                got=None if answer is None else f"{answer.dtype} {answer.shape}",
            )
        return np.asarray(answer)
