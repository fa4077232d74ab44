"""Python client of the attention service; needs only grpcio, protobuf and numpy.

    with AttentionClient("127.0.0.1:18010") as client:
        maps = client.attend_volume(voxels, affine)      # voxels [i, j, k] in Hounsfield units
        liver = maps.attention_of("liver")               # float32 [i, j, k], 0..1.875

Arrays are indexed ``[i, j, k]`` in the order of the CT's own file; affines go from voxel index to
millimetres in RAS+. Attention is uint8: real value = byte · ``attention_scale``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from atlasloop.answers import (
    READINGS,
    AttentionMaps,
    AttentionSlab,
    CaseResult,
    EnsembleInfo,
    Grid,
    Limits,
    ModelInfo,
    ModelRef,
    OrganResult,
    Reading,
    ServiceInfo,
    Timing,
    attention_slab,
    case_result,
    read_grid,
    service_info,
)
from atlasloop.attention.v1 import attention_pb2 as pb
from atlasloop.attention.v1 import attention_pb2_grpc as stubs

__all__ = [
    "AttentionClient",
    "AttentionMaps",
    "AttentionServiceError",
    "AttentionSlab",
    "AttentionStream",
    "CaseResult",
    "EnsembleInfo",
    "Grid",
    "Limits",
    "ModelInfo",
    "ModelRef",
    "OrganResult",
    "Reading",
    "ServiceInfo",
    "Timing",
]

CHUNK_BYTES = 2 * 2**20
"""Bytes of voxels in one message: large enough that the cost per message is negligible, and half of
gRPC's default limit, so that every server accepts it. A slice of soft predictions may be larger."""

_VOXEL_TYPES = {
    np.dtype("<i2"): pb.VOXEL_TYPE_INT16,
    np.dtype("<i4"): pb.VOXEL_TYPE_INT32,
    np.dtype("<f4"): pb.VOXEL_TYPE_FLOAT32,
    np.dtype("u1"): pb.VOXEL_TYPE_UINT8,
}
_RETRYABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
)


class AttentionServiceError(Exception):
    """The service refused a call or did not answer.

    Attributes:
        status: the gRPC status, for instance ``grpc.StatusCode.NOT_FOUND``.
        message: what the service said: what is wrong, expected, got, and the remedy.
    """

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(f"{status.name}: {message}")

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later: service or models are unavailable or busy."""
        return self.status in _RETRYABLE


ResponseT = TypeVar("ResponseT", covariant=True)


class _Call(Protocol, Generic[ResponseT]):
    """What the generated stubs return for a stream: an iterator that can be cancelled."""

    def __next__(self) -> ResponseT: ...

    def cancel(self) -> bool: ...


class AttentionStream:
    """Slabs of one call as they arrive; iterate over them, or `collect` them.

    The service works only as fast as slabs are read. Leaving early (``close`` or the end of a
    ``with`` block) cancels the call and stops the work.

    Attributes:
        grid: grid and channels; known before the first slab.
    """

    def __init__(self, call: _Call[pb.AttentionResponse]) -> None:
        self._call = call
        self._result: CaseResult | None = None
        first = self._next()
        if first is None or first.WhichOneof("event") != "grid":
            raise AttentionServiceError(
                grpc.StatusCode.INTERNAL, "the answer did not begin with its grid"
            )
        self.grid = read_grid(first.grid)

    @property
    def result(self) -> CaseResult:
        """Sizes and timing; known once all slabs have been read.

        Raises:
            RuntimeError: there are slabs left.
        """
        if self._result is None:
            raise RuntimeError("the result comes after the last slab; take them all first")
        return self._result

    def __iter__(self) -> Iterator[AttentionSlab]:
        while (response := self._next()) is not None:
            if response.WhichOneof("event") == "slab":
                yield attention_slab(response.slab, self.grid)
            elif response.WhichOneof("event") == "result":
                self._result = case_result(response.result)

    def collect(self) -> AttentionMaps:
        """All slabs as whole arrays; takes (organs + 1) bytes of memory per voxel.

        Raises:
            AttentionServiceError: the call failed, or slabs are missing.
        """
        attention = np.zeros((len(self.grid.organs), *self.grid.shape), np.uint8)
        label = np.zeros(self.grid.shape, np.uint8)
        voxels = 0
        for slab in self:
            index = (slice(None),) * slab.axis + (slice(slab.start, slab.stop),)
            attention[(slice(None), *index)] = slab.attention
            label[index] = slab.label
            voxels += slab.label.size
        if voxels != label.size or self._result is None:
            raise AttentionServiceError(
                grpc.StatusCode.DATA_LOSS, f"{voxels} of {label.size} voxels arrived"
            )
        return AttentionMaps(self.grid, attention, label, self._result)

    def close(self) -> None:
        """Cancel the rest of the call; harmless after its end."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> pb.AttentionResponse | None:
        with _service_errors():
            try:
                return self._call.__next__()
            except StopIteration:
                return None


@dataclass
class AttentionClient:
    """Connection to one attention service. Thread-safe; retries are left to the caller.

    Args:
        address: ``host:port``.
        timeout_s: deadline of each call that sets none of its own; None waits for ever.
        credentials: for a service behind TLS; None connects without encryption.
    """

    address: str
    timeout_s: float | None = None
    credentials: grpc.ChannelCredentials | None = None
    _channel: grpc.Channel = field(init=False, repr=False)
    _stub: stubs.AttentionServiceStub = field(init=False, repr=False)

    def __post_init__(self) -> None:
        options = [
            # A slice with all organs of a large CT exceeds gRPC's default of 4 MiB.
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            # Patients' voxels never go through a proxy that the environment happens to set.
            ("grpc.enable_http_proxy", 0),
            # A name with several addresses (a headless service) means replicas: use them in turn.
            ("grpc.lb_policy_name", "round_robin"),
            # New replicas are found when a connection ends, which servers see to now and then.
            ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        ]
        self._channel = (
            grpc.insecure_channel(self.address, options)
            if self.credentials is None
            else grpc.secure_channel(self.address, self.credentials, options)
        )
        self._stub = stubs.AttentionServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._channel.close()

    def info(self, *, timeout_s: float | None = None) -> ServiceInfo:
        """Models, organs, readings and limits.

        Raises:
            AttentionServiceError: the service is unavailable, or no ensemble is in service.
        """
        with _service_errors():
            reply = self._stub.GetInfo(pb.GetInfoRequest(), timeout=timeout_s or self.timeout_s)
        return service_info(reply)

    def score_case(
        self,
        case_id: str,
        reading: Reading = "paper",
        *,
        models: Sequence[str] = (),
        ensemble: str = "",
        newer_than: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
        timeout_s: float | None = None,
    ) -> CaseResult:
        """Score one case of the case store and write its maps there.

        Args:
            models: ``"unet"`` (the version in service) or ``"unet@2"``, one version per model;
                empty: the whole ensemble. With `ensemble` exactly its models, in these versions.
            ensemble: name of one that is loaded; empty: the one in use.
            newer_than: number of a stored result that is not to be answered; the next one is made
                beside it.
            on_progress: called with windows done and windows in total, of all models together.

        Raises:
            AttentionServiceError: nothing was written.
        """
        request = pb.ScoreCaseRequest(
            case_id=case_id,
            reading=READINGS[reading],
            models=models,
            ensemble=ensemble,
            newer_than=newer_than,
        )
        result = None
        with _service_errors():
            for event in self._stub.ScoreCase(request, timeout=timeout_s or self.timeout_s):
                if event.WhichOneof("event") == "progress" and on_progress is not None:
                    on_progress(event.progress.windows_done, event.progress.windows_total)
                elif event.WhichOneof("event") == "result":
                    result = case_result(event.result)
        if result is None:
            raise AttentionServiceError(grpc.StatusCode.INTERNAL, "the call ended without a result")
        return result

    def stream_case(
        self,
        case_id: str,
        reading: Reading = "paper",
        *,
        models: Sequence[str] = (),
        ensemble: str = "",
        organs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> AttentionStream:
        """Attention and pseudo label of a case of the store, slab by slab; nothing is written.

        Maps that scoring has stored are read; the models are run only where there are none.

        Args:
            models, ensemble: see `score_case`.
            organs: attention channels wanted; empty: all.

        Raises:
            AttentionServiceError: here or while iterating.
        """
        request = pb.StreamCaseRequest(
            case_id=case_id,
            reading=READINGS[reading],
            models=models,
            ensemble=ensemble,
            organs=organs,
        )
        return AttentionStream(self._stub.StreamCase(request, timeout=timeout_s or self.timeout_s))

    def stream_volume(
        self,
        voxels: NDArray[Any],
        affine: NDArray[Any],
        reading: Reading = "paper",
        *,
        slope: float = 1.0,
        intercept: float = 0.0,
        models: Sequence[str] = (),
        ensemble: str = "",
        organs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> AttentionStream:
        """Attention and pseudo label of the caller's own CT, slab by slab; nothing is stored.

        Args:
            voxels: ``[i, j, k]``, int16, int32, uint8 or float32; HU = stored · slope + intercept.
            affine: ``[4, 4]``, voxel index to RAS+ millimetres.
            models, ensemble: see `score_case`.
            organs: see `stream_case`.

        Raises:
            ValueError: `voxels` or `affine` have another form.
            AttentionServiceError: here or while iterating.
        """
        header = pb.AttendVolumeHeader(
            grid=_wire_grid(voxels.shape, affine),
            voxel_type=_voxel_type(voxels),
            slope=slope,
            intercept=intercept,
            reading=READINGS[reading],
            models=models,
            ensemble=ensemble,
            organs=organs,
        )
        requests = _volume_requests(header, voxels)
        return AttentionStream(
            self._stub.AttendVolume(requests, timeout=timeout_s or self.timeout_s)
        )

    def attend_volume(
        self,
        voxels: NDArray[Any],
        affine: NDArray[Any],
        reading: Reading = "paper",
        *,
        slope: float = 1.0,
        intercept: float = 0.0,
        models: Sequence[str] = (),
        ensemble: str = "",
        organs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> AttentionMaps:
        """`stream_volume`, collected into whole arrays."""
        with self.stream_volume(
            voxels,
            affine,
            reading,
            slope=slope,
            intercept=intercept,
            models=models,
            ensemble=ensemble,
            organs=organs,
            timeout_s=timeout_s,
        ) as stream:
            return stream.collect()

    def stream_fusion(
        self,
        soft: NDArray[Any],
        affine: NDArray[Any],
        organs: Sequence[str],
        reading: Reading = "paper",
        *,
        labels: Sequence[int] = (),
        timeout_s: float | None = None,
    ) -> AttentionStream:
        """Fuse the caller's own soft predictions (Eq. 1–4); no model is run.

        Args:
            soft: ``[model, organ, i, j, k]``, uint8 (p · 255) or float32 (p in [0, 1]).
            affine: ``[4, 4]``, voxel index to RAS+ millimetres.
            organs: names of the channels.
            labels: label value of each organ; empty: those of AbdomenAtlas, else 1, 2, 3, …

        Raises:
            ValueError: `soft` or `affine` have another form.
            AttentionServiceError: here or while iterating.
        """
        if soft.ndim != 5 or soft.shape[1] != len(organs):
            raise ValueError(
                f"soft predictions: expected [model, organ, i, j, k] with {len(organs)} organs, "
                f"got shape {soft.shape}"
            )
        grid = _wire_grid(soft.shape[2:], affine)
        grid.labels.extend(labels)
        header = pb.FuseHeader(
            grid=grid,
            models=soft.shape[0],
            organs=organs,
            voxel_type=_voxel_type(soft),
            reading=READINGS[reading],
        )
        return AttentionStream(
            self._stub.FuseSoftPredictions(
                _soft_requests(header, soft), timeout=timeout_s or self.timeout_s
            )
        )

    def fuse(
        self,
        soft: NDArray[Any],
        affine: NDArray[Any],
        organs: Sequence[str],
        reading: Reading = "paper",
        *,
        labels: Sequence[int] = (),
        timeout_s: float | None = None,
    ) -> AttentionMaps:
        """`stream_fusion`, collected into whole arrays."""
        with self.stream_fusion(
            soft, affine, organs, reading, labels=labels, timeout_s=timeout_s
        ) as stream:
            return stream.collect()


@contextmanager
def _service_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        # The stubs raise an RpcError that is a grpc.Call too; the base class has no status.
        if isinstance(error, grpc.Call):
            raise AttentionServiceError(error.code(), error.details() or "") from None
        raise AttentionServiceError(grpc.StatusCode.UNKNOWN, str(error)) from None


def _voxel_type(voxels: NDArray[Any]) -> pb.VoxelType.ValueType:
    try:
        return _VOXEL_TYPES[voxels.dtype.newbyteorder("<")]
    except KeyError:
        raise ValueError(
            f"voxel type: expected int16, int32, uint8 or float32, got {voxels.dtype}; "
            "convert the array first"
        ) from None


def _wire_grid(shape: Sequence[int], affine: NDArray[Any]) -> pb.VolumeGrid:
    if len(shape) != 3 or np.shape(affine) != (4, 4):
        raise ValueError(
            f"expected a volume [i, j, k] and an affine [4, 4], got {tuple(shape)} and "
            f"{np.shape(affine)}"
        )
    return pb.VolumeGrid(shape=shape, affine=np.asarray(affine, np.float64).ravel())


def _little_endian(block: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<")).tobytes()


def _volume_requests(
    header: pb.AttendVolumeHeader, voxels: NDArray[Any]
) -> Iterator[pb.AttendVolumeRequest]:
    yield pb.AttendVolumeRequest(header=header)
    for k in range(voxels.shape[2]):
        plane = _little_endian(voxels[:, :, k].T)
        for begin in range(0, len(plane), CHUNK_BYTES):
            yield pb.AttendVolumeRequest(voxels=plane[begin : begin + CHUNK_BYTES])


def _soft_requests(
    header: pb.FuseHeader, soft: NDArray[Any]
) -> Iterator[pb.FuseSoftPredictionsRequest]:
    yield pb.FuseSoftPredictionsRequest(header=header)
    slices = soft.shape[4]
    step = max(1, CHUNK_BYTES // max(1, soft[..., 0].nbytes))
    for start in range(0, slices, step):
        stop = min(start + step, slices)
        data = _little_endian(soft[..., start:stop].transpose(0, 1, 4, 3, 2))
        yield pb.FuseSoftPredictionsRequest(slab=pb.SoftSlab(start=start, stop=stop, data=data))
