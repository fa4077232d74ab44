"""What a client can cost the attention service when it misbehaves, or simply leaves.

Against a real service process and a real Triton, over real sockets. The service under test has low
limits, so that crossing them takes no time.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from atlasloop.attention.v1 import attention_pb2 as pb
from atlasloop.attention.v1 import attention_pb2_grpc as stubs
from attention_process import WAIT_S, Service, attention_process, await_that
from stack import Stack

SHAPE = (60, 56, 48)
SPACING_MM = 3.0
VOXELS = int(np.prod(SHAPE))

IDLE_TIMEOUT_S = 5
"""Long enough that a machine with other work to do is not taken for a client that dawdles."""
MAX_VOXELS = 4_000_000
MAX_MESSAGE_BYTES = 2**22

ABORTED_CALLS = 200

MEMORY_SLACK_BYTES = 24 * 2**20
"""What an allocator may keep after 200 calls. Each has up to a megabyte of CT and blended slices in
hand: one call in ten that leaked them would show."""


@pytest.fixture(scope="module")
def service(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with low limits, in front of the session's Triton."""
    limits = {
        "IDLE_TIMEOUT_S": IDLE_TIMEOUT_S,
        "MAX_VOXELS": MAX_VOXELS,
        "MAX_MESSAGE_BYTES": MAX_MESSAGE_BYTES,
        "MAX_CALLS": 4,
    }
    with attention_process(stack, tmp_path_factory.mktemp("bounds"), limits) as under_test:
        _attend(under_test, VOXELS_HU)  # kernels compiled, regions made
        yield under_test


def _ct() -> np.ndarray:
    """A body in air, HU int16 ``[i, j, k]``."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    body = i**2 + j**2 + 0.2 * k**2 < 0.8
    texture = np.random.default_rng(0).normal(0, 60, SHAPE)
    return np.where(body, 40 + texture, -1000).astype(np.int16)


VOXELS_HU = _ct()


def header(**changes: object) -> pb.AttendVolumeRequest:
    grid = pb.VolumeGrid(
        shape=SHAPE, affine=np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0]).ravel()
    )
    fields = {"grid": grid, "voxel_type": pb.VOXEL_TYPE_INT16, **changes}
    return pb.AttendVolumeRequest(header=pb.AttendVolumeHeader(**fields))


def chunks(voxels: np.ndarray, size: int = 2**17) -> Iterator[pb.AttendVolumeRequest]:
    data = voxels.tobytes(order="F")
    for start in range(0, len(data), size):
        yield pb.AttendVolumeRequest(voxels=data[start : start + size])


def _attend(service: Service, voxels: np.ndarray) -> list[bytes]:
    """A whole, well-behaved call: every message of the answer except the timing."""
    with service.channel() as channel:
        answer = stubs.AttentionServiceStub(channel).AttendVolume(
            iter([header(), *chunks(voxels)]), timeout=WAIT_S
        )
        return [m.SerializeToString() for m in answer if m.WhichOneof("event") != "result"]


# Clients that go away


class Upload:
    """Messages to a call, given one by one; ends only on `end`."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[pb.AttendVolumeRequest | None] = queue.SimpleQueue()

    def send(self, *messages: pb.AttendVolumeRequest) -> None:
        for message in messages:
            self._messages.put(message)

    def end(self) -> None:
        self._messages.put(None)

    def __iter__(self) -> Iterator[pb.AttendVolumeRequest]:
        return iter(self._messages.get, None)


def abort_after_header(stub: stubs.AttentionServiceStub) -> None:
    upload = Upload()
    call = stub.AttendVolume(iter(upload))
    upload.send(header())
    call.cancel()
    upload.end()


def abort_half_way_up(stub: stubs.AttentionServiceStub) -> None:
    upload = Upload()
    call = stub.AttendVolume(iter(upload))
    upload.send(header(), *list(chunks(VOXELS_HU))[:2])
    call.cancel()
    upload.end()


def abort_while_models_work(stub: stubs.AttentionServiceStub) -> None:
    call = stub.AttendVolume(iter([header(), *chunks(VOXELS_HU)]))
    next(call)  # the grid: the upload is complete
    call.cancel()


def abort_after_one_slab(stub: stubs.AttentionServiceStub) -> None:
    call = stub.AttendVolume(iter([header(), *chunks(VOXELS_HU)]))
    next(call), next(call)
    call.cancel()


def run_into_a_deadline(stub: stubs.AttentionServiceStub) -> None:
    call = stub.AttendVolume(iter([header(), *chunks(VOXELS_HU)]), timeout=0.05)
    with contextlib.suppress(grpc.RpcError):
        list(call)


ABORTS = (
    abort_after_header,
    abort_half_way_up,
    abort_while_models_work,
    abort_after_one_slab,
    run_into_a_deadline,
)


def _abort(service: Service, calls: int) -> None:
    """`calls` calls that end early in every way in turn, several at once, on few connections."""

    def some(at: int) -> None:
        with service.channel() as channel:  # closing it is one more way to leave
            stub = stubs.AttentionServiceStub(channel)
            for number in range(at, calls, 4):
                with contextlib.suppress(grpc.RpcError):
                    ABORTS[number % len(ABORTS)](stub)

    threads = [threading.Thread(target=some, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await_that(service.idle, "aborted calls have ended")


def test_two_hundred_aborted_calls_leave_nothing_behind(service: Service, stack: Stack) -> None:
    truth = _attend(service, VOXELS_HU)
    # Pools and heaps reach their size: each heap may come to have served all calls at once.
    _abort(service, 2 * ABORTED_CALLS)
    held, memory = service.held(), service.memory_bytes()

    _abort(service, ABORTED_CALLS)

    await_that(lambda: service.held() <= held, f"no more than before: {held}, now {service.held()}")
    # Fewer are, where an aborted call's have been taken back and not been used again yet.
    assert _registered(stack, service) <= held["regions"]
    grown = service.memory_bytes() - memory
    assert grown <= MEMORY_SLACK_BYTES, f"{grown / 2**20:.1f} MiB more after aborted calls"
    assert _attend(service, VOXELS_HU) == truth


def _registered(stack: Stack, service: Service) -> int:
    """How many regions of this service Triton maps; others come and go beside it."""
    with stack.triton_client() as client:
        regions = client.get_system_shared_memory_status().regions
    return sum(name.startswith(f"atlasloop-{service.pid}-") for name in regions)


# Clients that send something else than they should


def refused(service: Service, messages: Iterator[pb.AttendVolumeRequest]) -> grpc.RpcError:
    with service.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        list(stubs.AttentionServiceStub(channel).AttendVolume(messages, timeout=WAIT_S))
    return caught.value


def grid(shape: tuple[int, ...], affine: np.ndarray | None = None) -> pb.VolumeGrid:
    matrix = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0]) if affine is None else affine
    return pb.VolumeGrid(shape=shape, affine=matrix.ravel())


def with_nan() -> Iterator[pb.AttendVolumeRequest]:
    voxels = VOXELS_HU.astype(np.float32)
    voxels[3, 4, 5] = np.nan
    return iter([header(voxel_type=pb.VOXEL_TYPE_FLOAT32), *chunks(voxels)])


def stream(first: pb.AttendVolumeRequest, voxels: np.ndarray) -> Iterator[pb.AttendVolumeRequest]:
    return iter([first, *chunks(voxels)])


def whole_and_more() -> Iterator[pb.AttendVolumeRequest]:
    return iter([header(), *chunks(VOXELS_HU), pb.AttendVolumeRequest(voxels=b"\0\0")])


REFUSALS: dict[str, tuple[Callable[[], Iterator[pb.AttendVolumeRequest]], grpc.StatusCode]] = {
    "no header": (lambda: chunks(VOXELS_HU), grpc.StatusCode.INVALID_ARGUMENT),
    "nothing at all": (lambda: iter(()), grpc.StatusCode.INVALID_ARGUMENT),
    "two headers": (lambda: iter([header(), header()]), grpc.StatusCode.INVALID_ARGUMENT),
    "too few voxels": (
        lambda: stream(header(), VOXELS_HU[:, :, :-1]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "too many voxels": (whole_and_more, grpc.StatusCode.INVALID_ARGUMENT),
    "half a voxel": (
        lambda: iter([header(), pb.AttendVolumeRequest(voxels=b"\0\0\0")]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "two axes": (
        lambda: stream(header(grid=grid((60, 56))), VOXELS_HU),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "an empty axis": (
        lambda: stream(header(grid=grid((60, 0, 48))), VOXELS_HU),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a shape beyond the limit": (
        lambda: stream(header(grid=grid((60_000, 60_000, 60_000))), VOXELS_HU),
        grpc.StatusCode.OUT_OF_RANGE,
    ),
    "a flat affine": (
        lambda: stream(header(grid=grid(SHAPE, np.diag([3.0, 3.0, 0.0, 1.0]))), VOXELS_HU),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "an affine that is no number": (
        lambda: stream(header(grid=grid(SHAPE, np.full((4, 4), np.nan))), VOXELS_HU),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "NaN among the voxels": (with_nan, grpc.StatusCode.INVALID_ARGUMENT),
    "an unknown model": (
        lambda: stream(header(models=["nobody"]), VOXELS_HU),
        grpc.StatusCode.NOT_FOUND,
    ),
    "an unknown organ": (
        lambda: stream(header(organs=["appendix"]), VOXELS_HU),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a message beyond the limit": (
        lambda: iter([header(), pb.AttendVolumeRequest(voxels=bytes(2 * MAX_MESSAGE_BYTES))]),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_wrong_request_gets_a_precise_status_and_costs_nothing(
    service: Service, what: str
) -> None:
    messages, status = REFUSALS[what]
    peak = service.memory_bytes("VmHWM")

    error = refused(service, messages())

    assert isinstance(error, grpc.Call)
    assert error.code() is status, error.details()
    assert error.details()
    await_that(service.idle, "the refused call has ended")
    # Nothing was allocated on the word of a header: the volume itself is 0.3 MiB.
    assert service.memory_bytes("VmHWM") - peak <= MEMORY_SLACK_BYTES


# Clients that dawdle


def test_a_silent_upload_is_cut_off_and_frees_its_place(service: Service) -> None:
    upload = Upload()
    with service.channel() as channel:
        call = stubs.AttentionServiceStub(channel).AttendVolume(iter(upload), timeout=WAIT_S)
        upload.send(header(), next(chunks(VOXELS_HU)))
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        upload.end()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await_that(service.idle, "the silent call has ended")


def test_a_client_that_reads_nothing_is_cut_off_and_frees_its_place(service: Service) -> None:
    """Its answer waits in the service and does not pile up there."""
    memory = service.memory_bytes()
    wide = (320, 320, 38)
    # Otherwise the client's own library takes in megabytes that nobody reads.
    small_window = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**16))
    with service.channel(*small_window) as channel:
        fine = pb.VolumeGrid(shape=wide, affine=np.diag([0.5, 0.5, 4.0, 1.0]).ravel())
        call = stubs.AttentionServiceStub(channel).AttendVolume(
            stream(header(grid=fine), np.resize(VOXELS_HU, wide)), timeout=WAIT_S
        )
        await_that(lambda: not service.idle(), "the call has begun")
        await_that(service.idle, "the call that nobody reads has ended")
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert service.memory_bytes() - memory <= MEMORY_SLACK_BYTES
