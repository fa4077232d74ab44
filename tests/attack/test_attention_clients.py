"""Hostile clients of the attention service: what they ask for, how slowly, and in what words.

Against a real service process in front of a real Triton, over real sockets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from atlasloop.attention.v1 import attention_pb2 as pb
from atlasloop.attention.v1 import attention_pb2_grpc as stubs
from attention_process import WAIT_S, Service, attention_process, await_that
from stack import Stack

LIMITS = {"MAX_CALLS": 2, "MAX_WAITING": 4, "IDLE_TIMEOUT_S": 10}

SLACK_BYTES = 48 * 2**20
"""What compiled kernels, heaps and the pool of regions may keep of a first call."""


@pytest.fixture(scope="module")
def service(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with attention_process(stack, tmp_path_factory.mktemp("attacked"), LIMITS) as started:
        attend(started, volume((40, 40, 40), 3.0))  # kernels compiled, regions made
        yield started


def volume(
    shape: tuple[int, int, int], spacing_mm: float, **header: object
) -> list[pb.AttendVolumeRequest]:
    """Tissue of noise: no window is air."""
    grid = pb.VolumeGrid(shape=shape, affine=np.diag([*3 * (spacing_mm,), 1.0]).ravel())
    voxels = np.random.default_rng(0).integers(-50, 200, shape).astype("<i2").tobytes()
    fields = {"grid": grid, "voxel_type": pb.VOXEL_TYPE_INT16, **header}
    return [
        pb.AttendVolumeRequest(header=pb.AttendVolumeHeader(**fields)),
        pb.AttendVolumeRequest(voxels=voxels),
    ]


def attend(service: Service, messages: list[pb.AttendVolumeRequest]) -> int:
    """Messages of the answer."""
    with service.channel() as channel:
        call = stubs.AttentionServiceStub(channel).AttendVolume(iter(messages), timeout=4 * WAIT_S)
        return sum(1 for _ in call)


def refusal(
    service: Service, messages: list[pb.AttendVolumeRequest]
) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        attend(service, messages)
    error = caught.value
    assert isinstance(error, grpc.Call)
    return error.code(), error.details() or ""


# What they ask for


@pytest.mark.parametrize("shape", [(32, 32, 8), (64, 64, 4)])
def test_a_small_upload_of_an_absurd_spacing_costs_nothing(
    service: Service, shape: tuple[int, int, int]
) -> None:
    peak = service.memory_bytes("VmHWM")
    code, message = refusal(service, volume(shape, 100.0))
    assert code is grpc.StatusCode.OUT_OF_RANGE
    assert "100×100×100 mm" in message
    assert "correct the spacing" in message
    assert service.memory_bytes("VmHWM") - peak <= SLACK_BYTES


def test_memory_goes_back_after_a_large_call(service: Service) -> None:
    """Also after one that was abandoned half way, without another call to set it free."""
    before = service.memory_bytes()
    with service.channel() as channel:
        call = stubs.AttentionServiceStub(channel).AttendVolume(
            iter(volume((80, 40, 40), 31.0)), timeout=10 * WAIT_S
        )
        # A slab comes once the first row of windows has been predicted and blended.
        assert next(call).WhichOneof("event") == "grid"
        assert next(call).WhichOneof("event") == "slab"
        used = service.memory_bytes("VmHWM") - before
        call.cancel()
    await_that(service.idle, "the call has ended")
    assert used > 2 * SLACK_BYTES, "the call is too small to tell"
    await_that(lambda: service.memory_bytes() - before <= SLACK_BYTES, "memory goes back")


# How slowly


class Trickle:
    """A call that has sent its header, and then one voxel now and then until it is ended."""

    PAUSE_S = 0.2

    def __init__(self, service: Service) -> None:
        self._stop = threading.Event()
        self._channel = service.channel(("grpc.use_local_subchannel_pool", 1))
        stub = stubs.AttentionServiceStub(self._channel)
        self.call = stub.AttendVolume(self._messages(), timeout=10 * WAIT_S)

    def _messages(self) -> Iterator[pb.AttendVolumeRequest]:
        yield volume((40, 40, 40), 3.0)[0]
        while not self._stop.wait(self.PAUSE_S):
            yield pb.AttendVolumeRequest(voxels=bytes(2))

    def close(self) -> None:
        self._stop.set()
        self._channel.close()


@pytest.fixture
def tricklers(service: Service) -> Iterator[list[Trickle]]:
    """As many as may work at once; their calls are under way."""
    admitted = "atlasloop_attention_calls_admitted"
    open_calls = [Trickle(service) for _ in range(LIMITS["MAX_CALLS"])]
    await_that(lambda: service.metric(admitted) == len(open_calls), "all trickle")
    yield open_calls
    for trickle in open_calls:
        trickle.close()
    await_that(service.idle, "calls have ended")


def test_slow_clients_keep_nobody_from_working(service: Service, tricklers: list[Trickle]) -> None:
    assert attend(service, volume((40, 40, 40), 3.0)) > 2
    assert not any(trickle.call.done() for trickle in tricklers), "too late to tell"


def test_slow_clients_are_cut_off(tricklers: list[Trickle]) -> None:
    for trickle in tricklers:
        with pytest.raises(grpc.RpcError, match="bytes/s in the long run"):
            list(trickle.call)
        assert trickle.call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_slow_clients_of_fusion_keep_nobody_from_working(service: Service) -> None:
    grid = volume((40, 40, 40), 3.0)[0].header.grid
    header = pb.FuseHeader(grid=grid, models=1, organs=["liver"], voxel_type=pb.VOXEL_TYPE_UINT8)
    slab = pb.SoftSlab(start=0, stop=1, data=bytes(1600))
    ended = threading.Event()

    def slowly() -> Iterator[pb.FuseSoftPredictionsRequest]:
        yield pb.FuseSoftPredictionsRequest(header=header)
        yield pb.FuseSoftPredictionsRequest(slab=slab)
        ended.wait(WAIT_S)

    with service.channel() as channel:
        stub = stubs.AttentionServiceStub(channel)
        calls = [stub.FuseSoftPredictions(slowly()) for _ in range(LIMITS["MAX_CALLS"])]
        for call in calls:
            assert next(call).WhichOneof("event") == "grid"
            assert next(call).WhichOneof("event") == "slab"
        assert attend(service, volume((40, 40, 40), 3.0)) > 2
        assert not any(call.done() for call in calls), "too late to tell"
        ended.set()
    await_that(service.idle, "calls have ended")


def test_a_full_service_says_so(service: Service) -> None:
    most = LIMITS["MAX_CALLS"] + LIMITS["MAX_WAITING"]
    open_calls = [Trickle(service) for _ in range(most)]
    try:
        await_that(lambda: not service.serves(), "NOT_SERVING")
        code, message = refusal(service, volume((40, 40, 40), 3.0))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "try again" in message
    finally:
        for trickle in open_calls:
            trickle.close()
    await_that(service.serves, "SERVING again")


@pytest.mark.parametrize(
    "method",
    [
        "atlasloop.attention.v1.AttentionService/ScoreCase",
        "atlasloop.attention.v1.AttentionService/GetInfo",
        "grpc.health.v1.Health/Check",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_calls_without_a_message_give_their_threads_back(service: Service, method: str) -> None:
    """More of them than there are threads, and they would stay for ever."""
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(2 * WAIT_S)
        yield from ()

    with ExitStack() as opened:
        calls = []
        for _ in range(4):  # one connection does not get so many
            alone = ("grpc.use_local_subchannel_pool", 1)
            start = opened.enter_context(service.channel(alone)).stream_stream(f"/{method}")
            calls += [start(nothing(), timeout=2 * WAIT_S) for _ in range(10)]
        opened.callback(ended.set)
        for call in calls:
            with pytest.raises(grpc.RpcError, match=r"silent or too slow|limit exceeded"):
                list(call)
    await_that(service.serves, "the service answers")


# In what words


LONG = "x" * (20 << 20)


@pytest.mark.parametrize(
    "ask",
    [
        lambda stub: stub.ScoreCase(pb.ScoreCaseRequest(case_id=LONG)),
        lambda stub: stub.ScoreCase(pb.ScoreCaseRequest(case_id="a", models=[LONG])),
        lambda stub: stub.StreamCase(pb.StreamCaseRequest(case_id="a", organs=100_000 * ["b"])),
        lambda stub: stub.AttendVolume(iter(volume((2, 2, 2), 3.0, organs=[LONG]))),
        lambda stub: stub.FuseSoftPredictions(
            iter([pb.FuseSoftPredictionsRequest(header=pb.FuseHeader(organs=[LONG]))])
        ),
    ],
    ids=["case id", "model", "many organs", "organ of a volume", "organ to fuse"],
)
def test_long_texts_are_refused_and_never_logged(
    service: Service, ask: Callable[[stubs.AttentionServiceStub], Iterator[object]]
) -> None:
    size = service.log.stat().st_size
    with service.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        list(ask(stubs.AttentionServiceStub(channel)))
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "expected at most 256" in (error.details() or "")
    await_that(service.idle, "the call has ended")
    assert service.log.stat().st_size - size < 10_000
