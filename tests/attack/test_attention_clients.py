"""Hostile clients of the attention service: what they ask for, how slowly, and in what words.

Against a real service process in front of a real Triton, over real sockets.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from atlasloop.attention.v1 import attention_pb2 as pb
from atlasloop.attention.v1 import attention_pb2_grpc as stubs
from attention_process import WAIT_S, Service, attention_process, await_that
from stack import Stack

LIMITS = {"MAX_CALLS": 2, "MAX_WAITING": 4, "IDLE_TIMEOUT_S": 5}

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
        call = stubs.AttentionServiceStub(channel).AttendVolume(iter(messages), timeout=WAIT_S)
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
