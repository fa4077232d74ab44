"""The Python client against a scripted server: real gRPC, no models."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from atlasloop.attention.v1 import attention_pb2 as pb
from atlasloop.attention.v1 import attention_pb2_grpc as stubs
from atlasloop.client import AttentionClient, AttentionServiceError

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SHAPE = (3, 4, 5)
GRID = pb.AttentionResponse(
    grid=pb.VolumeGrid(
        shape=SHAPE, affine=AFFINE.ravel(), organs=["liver"], labels=[5], attention_scale=1 / 136
    )
)
RESULT = pb.AttentionResponse(result=pb.CaseResult(reading=pb.READING_RELEASED))


def slab(axis: int, start: int, stop: int, attention: np.ndarray[Any, Any]) -> pb.AttentionResponse:
    index = (slice(None),) * axis + (slice(start, stop),)
    data = attention[index].tobytes(order="F")
    return pb.AttentionResponse(
        slab=pb.AttentionSlab(
            axis=axis, start=start, stop=stop, attention=data, pseudo_label=bytes(len(data))
        )
    )


class Script(stubs.AttentionServiceServicer):
    """Gives scripted answers, and records the requests."""

    def __init__(self) -> None:
        self.answers: list[pb.AttentionResponse] = []
        self.scored: list[pb.ScoreCaseResponse] = []
        self.asked: list[Any] = []

    def GetInfo(self, request: pb.GetInfoRequest, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.UNAVAILABLE, "no model is in service")

    def ScoreCase(
        self, request: pb.ScoreCaseRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ScoreCaseResponse]:
        self.asked = [request]
        yield from self.scored

    def StreamCase(
        self, request: pb.StreamCaseRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.AttentionResponse]:
        self.asked = [request]
        yield from self.answers

    def AttendVolume(
        self, request_iterator: Iterator[pb.AttendVolumeRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.AttentionResponse]:
        self.asked = list(request_iterator)
        yield from self.answers

    def FuseSoftPredictions(
        self,
        request_iterator: Iterator[pb.FuseSoftPredictionsRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.AttentionResponse]:
        self.asked = list(request_iterator)
        yield from self.answers


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


@pytest.fixture(scope="module")
def client(script: Script) -> Iterator[AttentionClient]:
    server = grpc.server(ThreadPoolExecutor(2))
    stubs.add_AttentionServiceServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with AttentionClient(f"127.0.0.1:{port}", timeout_s=30) as connected:
        yield connected
    server.stop(None).wait()


def attention() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("falling", [False, True])
def test_slabs_along_any_axis_in_any_order_become_one_volume(
    axis: int, falling: bool, script: Script, client: AttentionClient
) -> None:
    maps = attention()
    slabs = [slab(axis, 0, 1, maps), slab(axis, 1, SHAPE[axis], maps)]
    script.answers = [GRID, *(reversed(slabs) if falling else slabs), RESULT]
    collected = client.stream_case("X_1").collect()
    assert np.array_equal(collected.attention[0], maps)
    assert collected.label.shape == SHAPE
    assert collected.result.reading == "released"
    assert np.allclose(collected.attention_of("liver"), maps / 136)
    with pytest.raises(KeyError, match="spleen"):
        collected.attention_of("spleen")


def test_missing_slabs_and_results_are_errors(script: Script, client: AttentionClient) -> None:
    maps = attention()
    for answers, status in (
        ([GRID, slab(2, 0, 4, maps), RESULT], grpc.StatusCode.DATA_LOSS),
        ([GRID, slab(2, 0, 5, maps)], grpc.StatusCode.DATA_LOSS),
        ([RESULT], grpc.StatusCode.INTERNAL),
        ([], grpc.StatusCode.INTERNAL),
    ):
        script.answers = answers
        with pytest.raises(AttentionServiceError) as caught:
            client.stream_case("X_1").collect()
        assert caught.value.status is status


def test_the_result_comes_last(script: Script, client: AttentionClient) -> None:
    script.answers = [GRID, slab(2, 0, 5, attention()), RESULT]
    with client.stream_case("X_1") as stream:
        with pytest.raises(RuntimeError, match="after the last slab"):
            _ = stream.result
        assert [part.stop for part in stream] == [5]
        assert stream.result.organs == ()


def test_progress_and_result_of_scoring(script: Script, client: AttentionClient) -> None:
    script.scored = [
        pb.ScoreCaseResponse(progress=pb.Progress(windows_done=1, windows_total=2)),
        pb.ScoreCaseResponse(result=pb.CaseResult(case_id="X_1", already_scored=True)),
    ]
    seen: list[tuple[int, int]] = []
    result = client.score_case(
        "X_1", "released", models=["unet@2"], on_progress=lambda *at: seen.append(at)
    )
    assert (result.case_id, result.already_scored, seen) == ("X_1", True, [(1, 2)])
    assert script.asked[0].reading == pb.READING_RELEASED
    assert list(script.asked[0].models) == ["unet@2"]
    script.scored = []
    with pytest.raises(AttentionServiceError, match="without a result"):
        client.score_case("X_1")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f4", "u1", "<i4"])
def test_voxels_are_sent_first_axis_fastest_and_little_endian(
    dtype: str, order: Any, script: Script, client: AttentionClient
) -> None:
    script.answers = [GRID, slab(2, 0, 5, attention()), RESULT]
    voxels = np.array(attention(), dtype=dtype, order=order)
    client.attend_volume(voxels, AFFINE)
    sent = b"".join(request.voxels for request in script.asked[1:])
    little = np.frombuffer(sent, np.dtype(dtype).newbyteorder("<"))
    assert np.array_equal(little.reshape(SHAPE, order="F"), attention())


def test_soft_predictions_are_sent_slab_by_slab(script: Script, client: AttentionClient) -> None:
    script.answers = [GRID, slab(2, 0, 5, attention()), RESULT]
    soft = np.random.default_rng(0).integers(0, 256, (2, 1, *SHAPE)).astype(np.uint8)
    client.fuse(soft, AFFINE, ["liver"], labels=[7])
    header, *slabs = script.asked
    assert (header.header.models, list(header.header.grid.labels)) == (2, [7])
    received = [
        np.frombuffer(part.slab.data, np.uint8).reshape(
            2, 1, part.slab.stop - part.slab.start, 4, 3
        )
        for part in slabs
    ]
    assert np.array_equal(np.concatenate(received, axis=2).transpose(0, 1, 4, 3, 2), soft)


def test_wrong_arrays_are_refused_before_anything_is_sent(client: AttentionClient) -> None:
    with pytest.raises(ValueError, match="float64"):
        client.attend_volume(np.zeros(SHAPE), AFFINE)
    with pytest.raises(ValueError, match=r"\[4, 4\]"):
        client.attend_volume(np.zeros(SHAPE, np.int16), np.eye(3))
    with pytest.raises(ValueError, match=r"\[i, j, k\]"):
        client.attend_volume(np.zeros((*SHAPE, 2), np.int16), AFFINE)
    with pytest.raises(ValueError, match="1 organs"):
        client.fuse(np.zeros((2, 2, *SHAPE), np.uint8), AFFINE, ["liver"])


def test_refusals_keep_status_and_message(client: AttentionClient) -> None:
    with pytest.raises(AttentionServiceError, match="no model is in service") as caught:
        client.info()
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE
    assert caught.value.retryable
    assert not AttentionServiceError(grpc.StatusCode.INVALID_ARGUMENT, "").retryable


def test_the_client_needs_grpc_protobuf_and_numpy_only() -> None:
    question = """
import sys
import atlasloop.client
ours = {"atlas_core", "atlas_attention"}
theirs = {"scipy", "pydantic", "nibabel", "numba", "tritonclient", "sqlalchemy", "torch"}
sys.exit(", ".join(sorted((ours | theirs) & set(sys.modules))) or 0)
"""
    subprocess.run([sys.executable, "-c", question], check=True)
