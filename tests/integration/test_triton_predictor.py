"""Windows predicted by a real Triton: right, bounded, and never leaking."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import pytest
from atlas_attention.fusion import CpuCompute
from atlas_attention.fusion.compute import GpuCompute
from atlas_attention.fusion.gpu.device import CudaDevice
from atlas_attention.scoring import attend
from atlas_attention.triton import TritonOptions, TritonPredictor
from atlas_attention.triton.shared_memory import SHARED_MEMORY
from atlas_core.errors import ConfigurationError, InvalidInput, NotFound, Unavailable
from atlas_core.imaging import open_slabs
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Reading
from atlas_embedded.triton_environment import TritonEnvironment
from numpy.typing import NDArray
from ports import free_port
from small_cts import write_small_cts
from triton_server import PATCH, REPOSITORY, TritonServer, install

BACKEND = REPOSITORY / "models" / "atlas_models" / "serving" / "triton_backend" / "model.py"

WAIT_S = 30.0

OpenPredictor = Callable[..., TritonPredictor]


@pytest.fixture
def open_predictor() -> Iterator[OpenPredictor]:
    """Predictors that are closed at the end, and must leave nothing behind."""
    opened: list[TritonPredictor] = []

    def make(server: TritonServer, **options: Any) -> TritonPredictor:
        predictor = TritonPredictor(TritonOptions(server.address, **options))
        opened.append(predictor)
        return predictor

    yield make
    for predictor in opened:
        predictor.close()
    assert own_regions() == set()


def own_regions() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob(f"atlasloop-{os.getpid()}-*")}


def window(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(40, 120, PATCH[::-1]).astype(np.float32)


def truth(folder: Path, voxels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """What the graph computes in this process."""
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    soft: NDArray[np.uint8] = session.run(["soft"], {"ct": voxels[None, None]})[0][0]
    return soft


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def eventually(call: Callable[[], Any]) -> Any:
    """What `call` returns once the server is back."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return call()
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def names(specs: tuple[ModelSpec, ...]) -> list[str]:
    return [f"{spec.name}@{spec.version}" for spec in specs]


def test_every_version_is_ready_and_the_newest_are_the_ensemble(
    triton_server: TritonServer, open_predictor: OpenPredictor
) -> None:
    predictor = open_predictor(triton_server)
    assert names(predictor.ready_models()) == ["conv_a@0", "conv_b@0", "conv_b@1", "conv_c@0"]
    assert names(predictor.ensemble()) == ["conv_a@0", "conv_b@1", "conv_c@0"]
    assert names(predictor.ensemble(["conv_b@0", "conv_a"])) == ["conv_a@0", "conv_b@0"]
    with pytest.raises(NotFound, match=r"conv_b@7 is not in service.*conv_b@0, conv_b@1"):
        predictor.ensemble(["conv_b@7"])
    for twice in (["conv_b", "conv_b@1"], ["conv_b@0", "conv_b@1"]):
        with pytest.raises(InvalidInput, match="named twice"):
            predictor.ensemble(twice)
    with pytest.raises(InvalidInput, match="malformed"):
        predictor.ensemble(["../conv_b"])


@pytest.mark.parametrize("transport", ["system", "none", "auto"])
def test_the_bytes_are_those_of_the_graph_whatever_the_transport(
    transport: str,
    triton_server: TritonServer,
    tiny_models: dict[str, Path],
    open_predictor: OpenPredictor,
) -> None:
    predictor = open_predictor(triton_server, shared_memory=transport)
    voxels = window()
    answers = {
        f"{spec.name}@{spec.version}": predictor.submit(spec, voxels)
        for spec in predictor.ready_models()
    }
    for name, answer in answers.items():
        soft = answer.result(WAIT_S)
        assert soft.dtype == np.uint8
        assert np.array_equal(soft, truth(tiny_models[name], voxels)), name
        assert soft.min() < 20 < 235 < soft.max(), "the models must have something to say"
    # One input for all models, one output for each; none by plain tensors.
    assert predictor.regions == (0 if transport == "none" else 1 + len(answers))
    assert triton_server.shared_regions() >= own_regions()


def test_a_server_without_a_gpu_gets_windows_in_another_way(
    triton_server: TritonServer, tiny_models: dict[str, Path], open_predictor: OpenPredictor
) -> None:
    try:
        CudaDevice()
        pytest.skip("a GPU can be used here")
    except ConfigurationError:
        pass
    predictor = open_predictor(triton_server, device="cuda")
    spec, voxels = predictor.ensemble()[0], window()
    expected = truth(tiny_models[f"{spec.name}@{spec.version}"], voxels)
    assert np.array_equal(predictor.submit(spec, voxels).result(WAIT_S), expected)
    assert predictor.regions == 2
    insisting = open_predictor(triton_server, device="cuda", shared_memory="cuda")
    with pytest.raises(ConfigurationError):
        insisting.submit(spec, voxels)


@pytest.fixture(scope="module")
def gpu() -> CudaDevice:
    """The GPU of this machine; skips where there is none."""
    try:
        return CudaDevice()
    except ConfigurationError as error:
        pytest.skip(f"CUDA SHARED MEMORY IS NOT TESTED: {error}")


def test_answers_stay_on_the_gpu(
    gpu: CudaDevice,
    private_triton: TritonServer,
    tiny_models: dict[str, Path],
    open_predictor: OpenPredictor,
) -> None:
    """From many threads, and again after a restart of the server."""
    predictor = open_predictor(
        private_triton, device="cuda", shared_memory="cuda", windows_in_flight=2
    )
    specs = predictor.ensemble()

    def score(seed: int) -> None:
        voxels = window(seed)
        answers = [predictor.submit(spec, voxels) for spec in specs]
        for spec, answer in zip(specs, answers, strict=True):
            soft: Any = answer.result(WAIT_S)
            assert isinstance(soft, gpu.arrays.ndarray)
            expected = truth(tiny_models[f"{spec.name}@{spec.version}"], voxels)
            assert np.array_equal(gpu.to_host(soft), expected)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(score, range(24)))
    assert predictor.regions <= 2 * (1 + len(specs))
    private_triton.kill()
    private_triton.start([spec.name for spec in specs])
    score(99)
    assert predictor.buffers_in_use == 0


@pytest.mark.parametrize("reading", list(Reading))
def test_a_whole_ct_on_the_gpu_is_the_cpus_to_the_bit(
    gpu: CudaDevice,
    triton_server: TritonServer,
    open_predictor: OpenPredictor,
    tmp_path: Path,
    reading: Reading,
) -> None:
    write_small_cts(tmp_path, 1, seed=0)
    results = []
    for device, compute in (("cpu", CpuCompute()), ("cuda", GpuCompute(gpu))):
        transport = "system" if device == "cpu" else "cuda"
        predictor = open_predictor(triton_server, device=device, shared_memory=transport)
        with open_slabs(tmp_path / "case_0.nii.gz") as ct:
            run = attend(
                ct,
                predictor.ensemble(),
                predictor,
                reading,
                compute=compute,
                slab_slices=7,
                scheme=ABDOMEN_ATLAS,
            )
            slabs = list(run)
        results.append((slabs, run.summary.organs))
    (on_cpu, scores), (on_gpu, scores_of_gpu) = results
    assert [(s.start, s.stop) for s in on_gpu] == [(s.start, s.stop) for s in on_cpu]
    for ours, expected in zip(on_gpu, on_cpu, strict=True):
        assert np.array_equal(ours.attention, expected.attention)
        assert np.array_equal(ours.label, expected.label)
    assert scores_of_gpu == scores and any(score.attention_ml for score in scores)


FIRST_AT_ONCE = """
import runpy, sys, threading, types
import numpy as np
sys.modules["triton_python_backend_utils"] = types.ModuleType("only Triton's stub has it")
backend, graph, *window = sys.argv[1:]
window = (1, *map(int, window))
names = runpy.run_path(backend)
run = names["OpenVinoGraph"](graph, window, names["Running"](threads=1, streams=4))
together = threading.Barrier(4)
def first():
    together.wait()
    run(np.zeros((1, *window), np.float32))
threads = [threading.Thread(target=first) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_a_models_first_windows_may_come_at_once(
    triton_environment: TritonEnvironment, tiny_models: dict[str, Path]
) -> None:
    """OpenVINO's binding to NumPy, made at the first array, must not be made by two threads."""
    graph = tiny_models["conv_a@0"] / "model.onnx"
    python = triton_environment.root / "bin" / "python"
    window = [str(size) for size in reversed(PATCH)]
    command = [str(python), "-c", FIRST_AT_ONCE, str(BACKEND), str(graph), *window]
    subprocess.run(command, check=True, timeout=WAIT_S)


def test_many_windows_of_many_threads_get_their_own_answers_within_few_regions(
    triton_server: TritonServer, tiny_models: dict[str, Path], open_predictor: OpenPredictor
) -> None:
    predictor = open_predictor(triton_server, windows_in_flight=2)
    specs = predictor.ensemble()

    def score(seed: int) -> None:
        voxels = window(seed)
        answers = [predictor.submit(spec, voxels) for spec in specs]
        for spec, answer in zip(specs, answers, strict=True):
            expected = truth(tiny_models[f"{spec.name}@{spec.version}"], voxels)
            assert np.array_equal(answer.result(WAIT_S), expected)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(score, range(36)))
    assert predictor.regions <= 2 * (1 + len(specs))
    assert predictor.buffers_in_use == 0


def test_an_answer_stays_when_its_region_is_used_again(
    triton_server: TritonServer, open_predictor: OpenPredictor
) -> None:
    predictor = open_predictor(triton_server, windows_in_flight=1)
    spec = predictor.ensemble()[0]
    first = predictor.submit(spec, window(1)).result(WAIT_S)
    kept = first.copy()
    predictor.submit(spec, window(2)).result(WAIT_S)
    assert np.array_equal(first, kept)


def test_cancelled_windows_free_their_buffers_and_spoil_nothing(
    triton_server: TritonServer, tiny_models: dict[str, Path], open_predictor: OpenPredictor
) -> None:
    predictor = open_predictor(triton_server, windows_in_flight=2)
    specs = predictor.ensemble()
    for seed in range(30):
        voxels = window(seed)
        for spec in specs:
            predictor.submit(spec, voxels).cancel()
    until(lambda: predictor.buffers_in_use == 0, "all buffers are free again")
    voxels = window(99)
    soft = predictor.submit(specs[0], voxels).result(WAIT_S)
    assert np.array_equal(soft, truth(tiny_models["conv_a@0"], voxels))
    assert predictor.regions <= 2 * (1 + len(specs))


def test_a_window_of_a_wrong_form_is_refused(
    triton_server: TritonServer, open_predictor: OpenPredictor
) -> None:
    predictor = open_predictor(triton_server)
    spec = predictor.ensemble()[0]
    with pytest.raises(InvalidInput, match="wrong form"):
        predictor.submit(spec, window().transpose(2, 1, 0))
    with pytest.raises(InvalidInput, match="float64"):
        predictor.submit(spec, window().astype(np.float64))  # type: ignore[arg-type]
    assert predictor.buffers_in_use == 0


def test_without_a_server_every_call_fails(open_predictor: OpenPredictor) -> None:
    class Nowhere:
        address = f"127.0.0.1:{free_port()}"

    predictor = open_predictor(Nowhere())
    with pytest.raises(Unavailable, match="does not answer"):
        predictor.ready_models()


def test_a_model_that_describes_itself_wrongly_is_refused(
    triton_server: TritonServer, open_predictor: OpenPredictor
) -> None:
    predictor = open_predictor(triton_server)
    spec = predictor.ensemble()[0]
    boastful = spec.model_copy(update={"organs": (*spec.organs, "liver_lesion")})
    with pytest.raises(ConfigurationError):
        predictor.submit(boastful, window()).result(WAIT_S)
    until(lambda: predictor.buffers_in_use == 0, "its buffers are free again")
    predictor.probe(spec)


@pytest.mark.parametrize("transport", ["system", "none"])
def test_a_killed_server_is_unreachable_and_then_back(
    transport: str,
    private_triton: TritonServer,
    tiny_models: dict[str, Path],
    open_predictor: OpenPredictor,
) -> None:
    predictor = open_predictor(private_triton, shared_memory=transport)
    spec = predictor.ensemble()[0]
    voxels = window()
    expected = truth(tiny_models["conv_a@0"], voxels)
    assert np.array_equal(predictor.submit(spec, voxels).result(WAIT_S), expected)
    assert predictor.answered_within(spec, seconds=WAIT_S)

    private_triton.kill()
    with pytest.raises(Unavailable, match="does not answer"):
        predictor.submit(spec, voxels).result(WAIT_S)
    with pytest.raises(Unavailable, match="does not answer"):
        predictor.ready_models()
    assert not predictor.answered_within(spec, seconds=WAIT_S)

    private_triton.start(["conv_a", "conv_b"])
    soft = eventually(lambda: predictor.submit(spec, voxels).result(WAIT_S))
    assert np.array_equal(soft, expected)
    until(lambda: predictor.buffers_in_use == 0, "no buffers are lost")


def test_an_unnoticed_restart_costs_nothing(
    private_triton: TritonServer, tiny_models: dict[str, Path], open_predictor: OpenPredictor
) -> None:
    """The new server does not know the regions; the windows are sent again automatically."""
    predictor = open_predictor(private_triton, shared_memory="system", windows_in_flight=1)
    specs = predictor.ensemble()
    voxels = window()
    for spec in specs:
        predictor.submit(spec, voxels).result(WAIT_S)

    private_triton.kill()
    private_triton.start(["conv_a", "conv_b"])
    eventually(predictor.ready_models)  # reconnected; the regions are still not registered

    answers = [predictor.submit(spec, voxels) for spec in specs]
    for spec, answer in zip(specs, answers, strict=True):
        expected = truth(tiny_models[f"{spec.name}@{spec.version}"], voxels)
        assert np.array_equal(answer.result(WAIT_S), expected)
    assert private_triton.shared_regions() == own_regions()


def test_only_an_inference_shows_that_the_process_of_a_model_died(
    private_triton: TritonServer, open_predictor: OpenPredictor
) -> None:
    predictor = open_predictor(private_triton)
    spec = predictor.ensemble()[0]
    predictor.probe(spec)
    for stub in psutil.Process(private_triton.pid).children(recursive=True):
        if any("conv_a" in word for word in stub.cmdline()):
            stub.kill()
    assert "conv_a@0" in names(predictor.ready_models()), "Triton still calls it ready"
    with pytest.raises(Unavailable, match=r"conv_a@0 fails though it is loaded.*load it again"):
        predictor.probe(spec)
    private_triton.unload("conv_a")
    private_triton.load("conv_a")
    predictor.probe(spec)


def test_models_may_come_and_go(
    private_triton: TritonServer,
    tiny_models: dict[str, Path],
    open_predictor: OpenPredictor,
    tmp_path: Path,
) -> None:
    predictor = open_predictor(private_triton)
    assert names(predictor.ensemble()) == ["conv_a@0", "conv_b@0"]
    old = predictor.ensemble()[1]
    install(tmp_path / "repository", [tiny_models["conv_b@1"]])
    private_triton.load("conv_b")
    assert names(predictor.ensemble()) == ["conv_a@0", "conv_b@1"]
    predictor.probe(old)

    private_triton.unload("conv_b")
    assert names(predictor.ensemble()) == ["conv_a@0"]
    with pytest.raises(Unavailable, match="conv_b@0 is not loaded any more"):
        predictor.probe(old)
    private_triton.unload("conv_a")
    with pytest.raises(Unavailable, match="no model is in service"):
        predictor.ensemble()


def test_a_version_unloaded_while_it_is_listed_is_not_an_outage(
    private_triton: TritonServer, open_predictor: OpenPredictor
) -> None:
    """The server lists a version, and no longer knows it when it is queried."""
    predictor = open_predictor(private_triton)
    done = threading.Event()
    seen: set[tuple[str, ...]] = set()

    def look() -> None:
        while not done.is_set():
            seen.add(tuple(names(predictor.ready_models())))

    with ThreadPoolExecutor(3) as pool:
        lookers = [pool.submit(look) for _ in range(3)]
        try:
            for _ in range(10):
                private_triton.unload("conv_b")
                private_triton.load("conv_b")
        finally:
            done.set()
        for looker in lookers:
            looker.result(WAIT_S)
    assert seen == {("conv_a@0",), ("conv_a@0", "conv_b@0")}
