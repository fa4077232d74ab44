"""Triton Python backend that runs an exported graph on a CPU.

Copied beside ``model.onnx`` into a version folder of the model repository; it runs in the server's
own environment (numpy < 2) and therefore imports nothing of Atlas Loop.

    input  ``ct``    float32 [batch, 1, z, y, x]      Hounsfield units
    output ``soft``  uint8   [batch, organ, z, y, x]  round(255 * p)

Parameters of the model's ``config.pbtxt`` (string values):

    atlasloop.runtime     auto (the first that works), openvino or onnxruntime
    atlasloop.precision   f32, or bf16 where the CPU has it
    atlasloop.threads     of one window; 0 means all cores
    atlasloop.streams     windows that one instance works on at once
    atlasloop.cache_dir   folder of compiled graphs; empty means none
    atlasloop.in_service  the version without which the model must not be loaded

What really runs is in the server's log: ``unet 1 runs by openvino in f32``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

INPUT_NAME = "ct"
OUTPUT_NAME = "soft"


class Running(NamedTuple):
    """How a graph is run.

    Attributes:
        precision: f32, or bf16 where the CPU has it.
        threads: of one window; 0 means all cores.
        streams: windows that are run side by side where as many threads call.
        cache_dir: folder of compiled graphs, or None.
    """

    precision: str = "f32"
    threads: int = 0
    streams: int = 1
    cache_dir: Path | None = None


class OpenVinoGraph:
    """The graph compiled by OpenVINO for windows of one fixed shape; safe to call from threads.

    Args:
        path: the ONNX file.
        window: shape of one input window, [1, z, y, x].
        how: precision, threads, streams, cache.
    """

    name = "openvino"

    def __init__(self, path: str, window: Sequence[int], how: Running) -> None:
        import openvino

        core = openvino.Core()
        self.precision = how.precision
        if how.precision == "bf16" and "BF16" not in core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            self.precision = "f32"
        options = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "NUM_STREAMS": how.streams,
            # Each model is a process of its own: pinned, all of them would sit on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        if how.threads:
            options["INFERENCE_NUM_THREADS"] = how.threads * how.streams
        if how.cache_dir:
            options["CACHE_DIR"] = str(how.cache_dir)
        graph = core.read_model(path)
        # A fixed shape lets OpenVINO plan its memory once; a batch is run window by window, which
        # on a CPU costs nothing.
        graph.reshape([1, *window])
        compiled = core.compile_model(graph, "CPU", options)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(how.streams):
            self._idle.put(compiled.create_infer_request())
        # OpenVINO binds to NumPy at the first array it is given. Two threads that do so at once
        # wait for each other for ever, so one window goes ahead alone.
        self(np.zeros((1, *window), np.float32))

    def __call__(self, windows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """uint8 [batch, organ, z, y, x] of float32 `windows` [batch, 1, z, y, x]."""
        request = self._idle.get()
        try:
            soft = [
                # A copy: the request's own buffer is overwritten by the next window.
                np.array(request.infer({INPUT_NAME: window[None]}, share_inputs=True)[0])
                for window in windows
            ]
        finally:
            self._idle.put(request)
        return soft[0] if len(soft) == 1 else np.concatenate(soft)


class OnnxRuntimeGraph:
    """The same graph run by ONNX Runtime; arguments as for `OpenVinoGraph`."""

    name = "onnxruntime"
    precision = "f32"

    def __init__(self, path: str, window: Sequence[int], how: Running) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = how.threads
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, windows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """uint8 [batch, organ, z, y, x] of float32 `windows` [batch, 1, z, y, x]."""
        return self._session.run([OUTPUT_NAME], {INPUT_NAME: windows})[0]


def open_graph(
    path: str, window: Sequence[int], runtime: str, how: Running
) -> OpenVinoGraph | OnnxRuntimeGraph:
    """The graph in the runtime asked for; `auto` takes the first of the two that works."""
    choices: dict[str, list[type[OpenVinoGraph] | type[OnnxRuntimeGraph]]] = {
        "openvino": [OpenVinoGraph],
        "onnxruntime": [OnnxRuntimeGraph],
        "auto": [OpenVinoGraph, OnnxRuntimeGraph],
    }
    runtimes = choices[runtime]
    for graph in runtimes:
        try:
            return graph(path, window, how)
        except Exception as error:
            if graph is runtimes[-1]:
                raise
            pb_utils.Logger.log_warn(f"{graph.name} cannot run {path}, trying the next: {error}")
    raise AssertionError("unreachable: the last runtime returned or raised")


class _Broken:
    """In the place of a graph that no runtime could open."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __call__(self, windows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        raise RuntimeError(self._why)


def compiled_cache(parameters: Mapping[str, str], model_name: str, version: str) -> Path | None:
    """The folder of this version's compiled graphs, or None; other versions' folders stay."""
    root = parameters.get("cache_dir", "")
    if not root:
        return None
    folder = Path(root) / model_name / str(version)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        pb_utils.Logger.log_warn(f"no cache of compiled graphs: {error}")
        return None
    return folder


class TritonPythonModel:
    """What Triton's Python backend looks for: one object per instance of a model version."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        prefix = "atlasloop."
        parameters = {
            key.removeprefix(prefix): value["string_value"]
            for key, value in config["parameters"].items()
            if key.startswith(prefix)
        }
        name, version = args["model_name"], args["model_version"]
        path = Path(args["model_repository"]) / version / "model.onnx"
        window = [int(size) for size in config["input"][0]["dims"]]
        how = Running(
            precision=parameters.get("precision", "f32"),
            threads=int(parameters.get("threads", "0")),
            streams=int(parameters.get("streams", "1")),
            cache_dir=compiled_cache(parameters, name, version),
        )
        self._pool = ThreadPoolExecutor(how.streams)
        self._free = threading.Semaphore(how.streams)
        self._graph: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.uint8]]
        try:
            graph = open_graph(str(path), window, parameters.get("runtime", "auto"), how)
        except Exception as error:
            if version == parameters.get("in_service"):
                raise
            # Triton loads all versions of a model or none, and the server may crash when it lets go
            # of a version that it has only just loaded because another one failed. So one that is
            # only tried is loaded even if it is broken, and says so to whoever asks for it.
            pb_utils.Logger.log_error(f"{name} {version} cannot run: {error}")
            self._graph = _Broken(f"it cannot run: {error}")
        else:
            self._graph = graph
            pb_utils.Logger.log_info(f"{name} {version} runs by {graph.name} in {graph.precision}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        # Every window is answered as soon as it is done: were those that came together answered
        # together, the stream that is done first would wait for the others with nothing to do. What
        # finds no stream free waits here, and all that comes later in the server's queue.
        for request in requests:
            self._free.acquire()
            self._pool.submit(self._respond, request)
        return [None] * len(requests)

    def _respond(self, request: Any) -> None:
        try:
            request.get_response_sender().send(
                self._answer(request), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            )
        except Exception as error:
            pb_utils.Logger.log_error(f"an answer could not be sent: {error}")
        finally:
            self._free.release()

    def finalize(self) -> None:
        self._pool.shutdown()

    def _answer(self, request: Any) -> Any:
        if request.is_cancelled():
            error = pb_utils.TritonError("cancelled by the client", pb_utils.TritonError.CANCELLED)
            return pb_utils.InferenceResponse(error=error)
        try:
            windows = pb_utils.get_input_tensor_by_name(request, INPUT_NAME).as_numpy()
            soft = pb_utils.Tensor(OUTPUT_NAME, self._graph(windows))
            return pb_utils.InferenceResponse(output_tensors=[soft])
        except Exception as error:
            # One bad request must not take the others, or the process, with it.
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
