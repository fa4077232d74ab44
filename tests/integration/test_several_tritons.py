"""Windows over several real Tritons: balanced, never lost, the same to the bit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from atlas_attention.scoring import attend
from atlas_attention.triton import TritonOptions, TritonPredictor, predictor
from atlas_attention.triton.shared_memory import SHARED_MEMORY
from atlas_core.addresses import Endpoint
from atlas_core.errors import ConfigurationError, Unavailable
from atlas_core.imaging import open_slabs
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Reading
from atlas_embedded.triton_models import TritonModels
from atlas_models.serving import CpuServing, TritonRepository
from numpy.typing import NDArray
from ports import free_port
from small_cts import write_small_cts
from triton_server import PATCH, TritonServer

WAIT_S = 60.0

Pair = tuple[TritonServer, TritonServer]
OpenPredictor = Callable[..., TritonPredictor]


@pytest.fixture
def open_predictor() -> Iterator[OpenPredictor]:
    """Predictors over several servers that are closed at the end, and leave nothing behind."""
    opened: list[TritonPredictor] = []

    def make(*addresses: str, **options: Any) -> TritonPredictor:
        opened.append(TritonPredictor(TritonOptions(",".join(addresses), **options)))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
    assert not list(SHARED_MEMORY.glob(f"atlasloop-{os.getpid()}-*"))


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def window(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(40, 120, PATCH[::-1]).astype(np.float32)


class Truth:
    """What the graphs compute in this process."""

    def __init__(self, models: dict[str, Path]) -> None:
        self._sessions = {
            name: onnxruntime.InferenceSession(
                str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
            )
            for name, folder in models.items()
        }

    def holds(self, predictor: TritonPredictor, seed: int) -> None:
        """One window by all models of the ensemble is right to the bit."""
        voxels = window(seed)
        answers = {spec.name: predictor.submit(spec, voxels) for spec in predictor.ensemble()}
        assert sorted(answers) == ["conv_a", "conv_b"]
        for name, answer in answers.items():
            expected = self._sessions[f"{name}@0"].run(["soft"], {"ct": voxels[None, None]})[0][0]
            assert np.array_equal(answer.result(WAIT_S), expected)


@pytest.fixture(scope="module")
def truth(tiny_models: dict[str, Path]) -> Truth:
    return Truth({name: tiny_models[name] for name in ("conv_a@0", "conv_b@0")})


@pytest.mark.parametrize("transport", ["system", "none"])
def test_windows_are_balanced_and_right_to_the_bit(
    transport: str, triton_pair: Pair, truth: Truth, open_predictor: OpenPredictor
) -> None:
    both = open_predictor(*(s.address for s in triton_pair), shared_memory=transport)
    before = [server.inferences() for server in triton_pair]
    both.server_models()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: truth.holds(both, seed), range(32)))
    until(lambda: sum(s.inferences() for s in triton_pair) >= sum(before) + 64, "all are counted")
    done = [server.inferences() - n for server, n in zip(triton_pair, before, strict=True)]
    assert sum(done) == 2 * 32, "no window is predicted twice"
    assert min(done) >= 16
    assert both.buffers_in_use == 0


@pytest.mark.parametrize("transport", ["system", "none"])
def test_what_a_killed_server_had_is_sent_to_the_other(
    transport: str, triton_pair: Pair, truth: Truth, open_predictor: OpenPredictor
) -> None:
    first, second = triton_pair
    both = open_predictor(first.address, second.address, shared_memory=transport)
    specs = both.ensemble()
    counted = first.inferences() + second.inferences()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: truth.holds(both, seed), range(4)))
    # A server counts an inference a little after it has answered.
    until(lambda: first.inferences() + second.inferences() >= counted + 8, "all are counted")
    before = second.inferences()
    first.pause()  # from now on it answers nothing
    # One model a window, so that one answer is awaited for each buffer.
    answers = [both.submit(specs[seed % 2], window(seed)) for seed in range(12)]

    def only_the_first_is_waited_for() -> bool:
        done = sum(answer.done() for answer in answers)
        return second.inferences() - before == done == len(answers) - both.buffers_in_use

    try:
        until(only_the_first_is_waited_for, "the other one answers what it got")
        assert both.buffers_in_use
    finally:
        first.kill()
    for answer in answers:
        answer.result(WAIT_S)
    until(lambda: second.inferences() - before >= len(answers), "all are counted")
    assert second.inferences() - before == len(answers), "only what was lost is predicted again"
    for seed in range(6):
        truth.holds(both, seed)


def test_a_case_goes_on_when_one_is_killed(
    triton_pair: Pair, open_predictor: OpenPredictor, tmp_path: Path
) -> None:
    """The maps are those of a single server, to the bit."""
    first, second = triton_pair
    write_small_cts(tmp_path, 1, seed=0)

    def run(models: TritonPredictor, after_first_slab: Callable[[], None]) -> list[Any]:
        slabs = []
        with open_slabs(tmp_path / "case_0.nii.gz") as ct:
            made = attend(
                ct, models.ensemble(), models, Reading.PAPER, slab_slices=7, scheme=ABDOMEN_ATLAS
            )
            for slab in made:
                if not slabs:
                    after_first_slab()
                slabs.append((slab.start, slab.attention.tobytes(), slab.label.tobytes()))
        return [*slabs, made.summary.organs]

    expected = run(open_predictor(second.address), lambda: None)
    both = open_predictor(first.address, second.address)
    assert run(both, first.kill) == expected
    # It comes back, and gets work again.
    first.start(["conv_a", "conv_b"])

    def answers() -> bool:
        both.ensemble()
        both.probe(both.ensemble()[0])
        return first.inferences() > 0

    until(answers, "the restarted server gets work")
    assert run(both, lambda: None) == expected


def test_one_that_starts_later_gets_work_once_it_has_the_models(
    triton_pair: Pair, truth: Truth, open_predictor: OpenPredictor
) -> None:
    first, second = triton_pair
    second.kill()
    both = open_predictor(first.address, second.address)
    truth.holds(both, 0)
    second.start()  # without any model
    for seed in range(6):
        truth.holds(both, seed)
    assert second.inferences() == 0
    second.load("conv_a")
    second.load("conv_b")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: truth.holds(both, seed), range(12)))
    assert second.inferences() > 0


def test_servers_follow_what_the_name_resolves_to(
    triton_pair: Pair, truth: Truth, open_predictor: OpenPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Endpoint(server.address, "triton") for server in triton_pair)
    there = [first]
    monkeypatch.setattr(predictor, "endpoints", lambda address, known: tuple(there))
    monkeypatch.setattr(predictor, "RESOLVE_EVERY_S", 0.0)
    of_name = open_predictor("triton:8001")
    before = triton_pair[1].inferences()
    truth.holds(of_name, 0)
    assert triton_pair[1].inferences() == before
    there[:] = [second]

    def moved() -> bool:
        truth.holds(of_name, 1)
        return triton_pair[1].inferences() > before

    until(moved, "the new server gets the work")
    until(lambda: not triton_pair[0].shared_regions(), "the old one has given its regions back")
    there.clear()

    def is_without_servers() -> bool:
        try:
            of_name.ensemble()
        except Unavailable as error:
            return "no model server is to be found" in str(error)
        return False

    until(is_without_servers, "there is no server left")


def test_without_any_server_every_call_fails(open_predictor: OpenPredictor) -> None:
    nowhere = open_predictor(*(f"127.0.0.1:{free_port()}" for _ in range(2)))
    with pytest.raises(Unavailable, match="does not answer"):
        nowhere.ready_models()


def test_control_reaches_every_server(
    triton_pair: Pair, tiny_models: dict[str, Path], open_predictor: OpenPredictor, tmp_path: Path
) -> None:
    """A switch counts when all servers have made it."""
    first, second = triton_pair
    repository = TritonRepository(first.repository, CpuServing(runtime="onnxruntime", threads=1))
    models = TritonModels(f"{first.address},{second.address}", repository, 60.0)
    names = ["conv_a", "conv_b"]
    assert all(models.is_loaded(name) for name in names)
    second.unload("conv_b")
    assert not models.is_loaded("conv_b")
    models.put_into_service()
    assert all(models.is_loaded(name) for name in names)
    models.require_answers()

    both = open_predictor(first.address, second.address)
    assert [spec.version for spec in both.ensemble()] == [0, 0]
    try:
        repository.install(tiny_models["conv_b@1"])
        first.load("conv_b")
        assert [spec.version for spec in both.ensemble()] == [0, 0], "one of two has switched"
        models.load("conv_b")
        assert [spec.version for spec in both.ensemble()] == [0, 1]
        second.kill()
        with pytest.raises((Unavailable, ConfigurationError)):
            models.load("conv_a")
    finally:
        repository.remove("conv_b", 1)
        first.load("conv_b")
