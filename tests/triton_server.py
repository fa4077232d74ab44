"""A real Triton server with tiny models, for tests.

The models are one convolution each: deterministic, quick, and with the interface of the real ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import tritonclient.grpc as triton
from atlas_attention.triton.shared_memory import SHARED_MEMORY
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from atlas_embedded.triton_environment import TritonEnvironment, find_triton
from atlas_models.serving import CpuServing, TritonRepository
from onnx import TensorProto, helper, numpy_helper
from ports import free_port
from tritonclient.utils import InferenceServerException

REPOSITORY = Path(__file__).resolve().parents[1]

ORGANS = ("liver", "spleen", "pancreas")
PATCH = (24, 20, 16)
"""Along x, y, z: three different numbers, so that a swapped axis cannot go unnoticed."""

SPACING_MM = (3.0, 3.0, 3.0)
HU_WINDOW = (-175.0, 250.0)

START_TIMEOUT_S = 60.0


def export_tiny_model(
    folder: Path,
    name: str,
    *,
    version: int = 0,
    organs: Sequence[str] = ORGANS,
    patch: tuple[int, int, int] = PATCH,
    seed: int = 0,
    **member: Any,
) -> ModelSpec:
    """Write ``model.onnx`` and ``model.json`` of a one-convolution model into `folder`.

    Channel c is a sigmoid around its own level of Hounsfield units, with a random smoothing kernel:
    models of different seeds agree inside structures and differ at their borders. `member` are
    further fields of the spec.
    """
    random = np.random.default_rng([seed, version])
    kernel = random.random((len(organs), 1, 3, 3, 3)).astype(np.float32)
    kernel /= kernel.sum(axis=(2, 3, 4), keepdims=True)
    steepness = np.float32(20.0)
    level = np.linspace(0.45, 0.7, len(organs), dtype=np.float32)
    level += random.normal(0, 0.01, len(organs)).astype(np.float32)
    low, high = HU_WINDOW
    constants = {
        "low": np.float32(low),
        "high": np.float32(high),
        "width": np.float32(high - low),
        "kernel": kernel * steepness,
        "bias": -level * steepness,
        "byte": np.float32(255.0),
    }
    nodes = [
        helper.make_node("Clip", [INPUT_NAME, "low", "high"], ["clipped"]),
        helper.make_node("Sub", ["clipped", "low"], ["shifted"]),
        helper.make_node("Div", ["shifted", "width"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "kernel", "bias"], ["logits"], pads=[1] * 6),
        helper.make_node("Sigmoid", ["logits"], ["probability"]),
        helper.make_node("Mul", ["probability", "byte"], ["bytes"]),
        helper.make_node("Round", ["bytes"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], [OUTPUT_NAME], to=TensorProto.UINT8),
    ]
    z, y, x = reversed(patch)
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["batch", 1, z, y, x])],
        [
            helper.make_tensor_value_info(
                OUTPUT_NAME, TensorProto.UINT8, ["batch", len(organs), z, y, x]
            )
        ],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    content = model.SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    fields: dict[str, Any] = {"spacing_mm": SPACING_MM} | member
    spec = ModelSpec(
        name=name,
        version=version,
        architecture="convolution",
        organs=tuple(organs),
        patch=patch,
        hu_window=HU_WINDOW,
        sha256=hashlib.sha256(content).hexdigest(),
        **fields,
    )
    (folder / "model.json").write_text(spec.model_dump_json())
    return spec


class TritonServer:
    """One tritonserver process on ports of its own; may be killed and started again.

    Args:
        arguments: of tritonserver, beyond what every test needs.
        login: arguments of a client that it lets in, where it does not let in any.
    """

    def __init__(
        self,
        environment: TritonEnvironment,
        repository: Path,
        log: Path,
        arguments: Sequence[str] = (),
        login: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._environment = environment
        self._arguments = arguments
        self._login = dict(login)
        self._repository = repository
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.grpc_port, self._http_port, self._metrics_port = (free_port() for _ in range(3))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def repository(self) -> Path:
        return self._repository

    @property
    def http(self) -> str:
        """Of its HTTP endpoint."""
        return f"http://127.0.0.1:{self._http_port}"

    @property
    def metrics(self) -> str:
        """Of its metrics."""
        return f"http://127.0.0.1:{self._metrics_port}"

    @property
    def _region_prefix(self) -> str:
        """Of the memory that the server shares with its stub processes."""
        return f"triton-test-{self.grpc_port}-"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, models: Sequence[str] = ()) -> None:
        """Start it, wait until it is ready, and load `models`."""
        command = [
            str(self._environment.binary),
            f"--model-repository={self._repository}",
            f"--backend-directory={self._environment.backends}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            "--strict-readiness=false",
            "--exit-timeout-secs=1",
            "--allow-gpu-metrics=false",  # the library that looks for a GPU can hang
            f"--backend-config=python,shm-region-prefix-name={self._region_prefix}",
            "--grpc-address=127.0.0.1",
            "--http-address=127.0.0.1",
            "--metrics-address=127.0.0.1",
            f"--grpc-port={self.grpc_port}",
            f"--http-port={self._http_port}",
            f"--metrics-port={self._metrics_port}",
            *self._arguments,
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment.variables()},
            )
        self._wait_ready()
        for name in models:
            self.load(name)

    def load(self, name: str) -> None:
        with triton.InferenceServerClient(self.address) as client:
            client.load_model(name)

    def unload(self, name: str) -> None:
        """Unload, and wait until that is done: Triton answers before."""
        with triton.InferenceServerClient(self.address) as client:
            client.unload_model(name)
            deadline = time.monotonic() + START_TIMEOUT_S
            while client.is_model_ready(name):
                assert time.monotonic() < deadline, f"{name} is still loaded"
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to the server, then to its stub processes, which do not always notice."""
        assert self._process is not None
        stubs = psutil.Process(self.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        for stub in stubs:
            with contextlib.suppress(psutil.NoSuchProcess):
                stub.kill()
        self._remove_regions()

    def stop(self) -> None:
        if self.running:
            assert self._process is not None
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()
        self._remove_regions()

    def _remove_regions(self) -> None:
        """A killed server leaves them behind."""
        for path in SHARED_MEMORY.glob(f"{self._region_prefix}*"):
            path.unlink(missing_ok=True)

    def shared_regions(self) -> set[str]:
        """Names of the shared-memory regions that clients have registered."""
        with triton.InferenceServerClient(self.address) as client:
            return set(client.get_system_shared_memory_status().regions)

    def inferences(self) -> int:
        """How many it has answered since it was started."""
        with triton.InferenceServerClient(self.address) as client:
            stats = client.get_inference_statistics().model_stats
            return sum(model.inference_count for model in stats)

    def pause(self) -> None:
        """It takes no more work; `kill` ends that."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)  # not all threads stop at once

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        with triton.InferenceServerClient(self.address, **self._login) as client:
            while True:
                try:
                    if client.is_server_ready():
                        return
                except InferenceServerException:
                    pass
                log = self._log.read_text(errors="replace")
                assert self._process.poll() is None, f"tritonserver ended:\n{log[-3000:]}"
                assert time.monotonic() < deadline, f"tritonserver is not ready:\n{log[-3000:]}"
                time.sleep(0.05)


@pytest.fixture(scope="session")
def triton_environment() -> TritonEnvironment:
    """The environment that tritonserver runs in; `make setup-dev` makes it."""
    root = Path(os.environ.get("ATLASLOOP_TRITON_ENVIRONMENT", REPOSITORY / ".venv-triton"))
    return find_triton(root)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of exported tiny models, by reference: three of them, one in two versions."""
    root = tmp_path_factory.mktemp("tiny-models")
    folders = {}
    for seed, (name, version) in enumerate([("conv_a", 0), ("conv_b", 0), ("conv_b", 1)]):
        folder = root / f"{name}@{version}"
        export_tiny_model(folder, name, version=version, seed=seed)
        folders[folder.name] = folder
    export_tiny_model(root / "conv_c@0", "conv_c", seed=3)
    return {**folders, "conv_c@0": root / "conv_c@0"}


def install(repository: Path, models: Sequence[Path]) -> None:
    """Put exported models into a Triton repository, served by ONNX Runtime.

    ONNX Runtime, because tests compare with the same runtime in this process.
    """
    serving = CpuServing(runtime="onnxruntime", threads=1)
    for folder in models:
        TritonRepository(repository, serving).install(folder)


@pytest.fixture(scope="session")
def triton_server(
    triton_environment: TritonEnvironment,
    tiny_models: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonServer]:
    """A server for the whole session; tests that kill it use `private_triton` instead."""
    folder = tmp_path_factory.mktemp("triton")
    install(folder / "repository", list(tiny_models.values()))
    server = TritonServer(triton_environment, folder / "repository", folder / "triton.log")
    server.start(["conv_a", "conv_b", "conv_c"])
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _triton_pair(
    triton_environment: TritonEnvironment,
    tiny_models: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[TritonServer, TritonServer]]:
    folder = tmp_path_factory.mktemp("triton-pair")
    install(folder / "repository", [tiny_models["conv_a@0"], tiny_models["conv_b@0"]])
    first, second = (
        TritonServer(triton_environment, folder / "repository", folder / f"{name}.log")
        for name in ("first", "second")
    )
    yield first, second
    first.stop()
    second.stop()


@pytest.fixture
def triton_pair(
    _triton_pair: tuple[TritonServer, TritonServer],
) -> tuple[TritonServer, TritonServer]:
    """Two servers of one repository, with conv_a@0 and conv_b@0; a test may kill them."""
    for server in _triton_pair:
        if not server.running:
            server.start()
        for name in ("conv_a", "conv_b"):
            server.load(name)
    return _triton_pair


@pytest.fixture
def private_triton(
    triton_environment: TritonEnvironment, tiny_models: dict[str, Path], tmp_path: Path
) -> Iterator[TritonServer]:
    """A server of one test's own, which may kill it and change its models."""
    install(tmp_path / "repository", [tiny_models["conv_a@0"], tiny_models["conv_b@0"]])
    server = TritonServer(triton_environment, tmp_path / "repository", tmp_path / "triton.log")
    server.start(["conv_a", "conv_b"])
    yield server
    server.stop()
