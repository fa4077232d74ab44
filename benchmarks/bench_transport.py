"""What it costs to get one window's soft predictions out of Triton, three ways.

A window of 96 × 96 × 96 voxels goes in, nine organs come out, through a real Triton whose model
computes nothing: float32 inside gRPC messages (as servers send by default), uint8 inside gRPC
messages, and uint8 through system shared memory (the attention service's way, its own code). Rounds
of all three follow one another in turn, so that a busy moment of the machine meets all alike.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import tritonclient.grpc as triton
from atlas_attention.triton import CHANNEL_OPTIONS, TritonOptions, TritonPredictor
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_models.serving import CpuServing, config_text, model_config
from bench.measurement import Timing, machine, report
from bench.serving import bare_triton
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb

WINDOW = (96, 96, 96)
ROUNDS = 40
WARM_UP = 5


def main() -> None:
    described = machine("tritonclient", "grpcio", "numpy")
    uint8, float32 = _spec("soft_uint8"), _spec("soft_float32")
    with tempfile.TemporaryDirectory(prefix="atlasloop-bench-") as folder:
        repository = Path(folder) / "repository"
        _install(repository, uint8, pb.TYPE_UINT8)
        _install(repository, float32, pb.TYPE_FP32)
        with bare_triton(repository, Path(folder)) as address:
            timings = _measure(address, uint8, float32)
    medians = {name: round(timing.median * 1e3, 2) for name, timing in timings.items()}
    voxels = int(np.prod(WINDOW))
    report(
        "transport",
        **medians,
        float32_grpc_over_uint8_shared_memory=round(
            medians["float32_grpc_ms"] / medians["uint8_shared_memory_ms"], 2
        ),
        quartiles_ms={
            name: [round(float(q) * 1e3, 2) for q in np.quantile(t.seconds, (0.25, 0.75))]
            for name, t in timings.items()
        },
        inputs={
            "window": list(WINDOW),
            "organs": len(uint8.organs),
            "bytes_in": voxels * 4,
            "bytes_out_uint8": voxels * len(uint8.organs),
            "bytes_out_float32": voxels * len(uint8.organs) * 4,
            "rounds": ROUNDS,
        },
        machine=described,
    )


def _measure(address: str, uint8: ModelSpec, float32: ModelSpec) -> dict[str, Timing]:
    window = np.random.default_rng(0).normal(0, 100, WINDOW).astype(np.float32)
    with (
        _predictor(address, "none") as by_grpc,
        _predictor(address, "system") as by_shared_memory,
        triton.InferenceServerClient(address, channel_args=list(CHANNEL_OPTIONS)) as client,
    ):
        ways: dict[str, Callable[[], object]] = {
            "float32_grpc_ms": lambda: _plain_inference(client, float32, window),
            "uint8_grpc_ms": lambda: by_grpc.submit(uint8, window).result(),
            "uint8_shared_memory_ms": lambda: by_shared_memory.submit(uint8, window).result(),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for at in range(WARM_UP + ROUNDS):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                if at >= WARM_UP:
                    seconds[name].append(time.perf_counter() - began)
    return {name: Timing(tuple(all_rounds)) for name, all_rounds in seconds.items()}


def _plain_inference(
    client: triton.InferenceServerClient, spec: ModelSpec, window: np.ndarray
) -> np.ndarray:
    """What a client does that knows nothing of the attention service."""
    tensor = triton.InferInput(INPUT_NAME, [1, 1, *window.shape], "FP32")
    tensor.set_data_from_numpy(window[None, None])
    soft: NDArray[np.float32] | None = client.infer(spec.name, [tensor]).as_numpy(OUTPUT_NAME)
    assert soft is not None
    assert soft.dtype == np.float32
    return soft


@contextmanager
def _predictor(
    address: str, shared_memory: Literal["auto", "cuda", "system", "none"]
) -> Iterator[TritonPredictor]:
    predictor = TritonPredictor(TritonOptions(address, shared_memory=shared_memory))
    try:
        yield predictor
    finally:
        predictor.close()


def _spec(name: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        version=0,
        architecture="none",
        organs=ABDOMEN_ATLAS.names,
        spacing_mm=(1.5, 1.5, 1.5),
        patch=WINDOW,
        hu_window=(-175, 250),
        sha256="0" * 64,
    )


def _install(repository: Path, spec: ModelSpec, output: pb.DataType.ValueType) -> None:
    config = model_config([spec], CpuServing())
    config.output[0].data_type = output
    folder = repository / spec.name / str(spec.triton_version)
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(config_text(config))
    shutil.copy(Path(__file__).parent / "peers" / "transport_model.py", folder / "model.py")


if __name__ == "__main__":
    main()
