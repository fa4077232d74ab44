"""Where a CT comes from: the case store, or a client that sends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from atlas_core.errors import AtlasError, InvalidInput, NotFound
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import SlabReader, VoxelCoding, open_slabs, read_header, spool_slabs
from atlas_core.model_spec import ModelSpec
from atlas_core.store import CaseStore
from atlasloop.attention.v1 import attention_pb2 as pb


def open_case(
    store: CaseStore,
    case_id: str,
    specs: Sequence[ModelSpec],
    *,
    max_voxels: int,
    spool_folder: Path | None,
) -> SlabReader:
    """The CT of a case, to be read slab by slab and closed by the caller.

    Args:
        specs: the models that will work on it.

    Raises:
        NotFound: no such case.
        CorruptFile, UnsupportedVolume: its file cannot be read.
        LimitExceeded: it has too many voxels, or asks for too much work; see
            `VolumeGeometry.require_bounded`.
    """
    path = store.ct_path(case_id)
    if not path.is_file():
        raise NotFound("the case store has no such case", case=case_id, remedy="import it first")
    try:
        read_header(path).geometry.require_bounded(spec.spacing_mm for spec in specs)
        return open_slabs(path, max_voxels=max_voxels, spool_folder=spool_folder)
    except AtlasError as error:
        raise error.with_case(case_id) from None


def receive_volume(
    geometry: VolumeGeometry,
    coding: VoxelCoding,
    requests: Iterable[pb.AttendVolumeRequest],
    *,
    spool_folder: Path | None,
) -> SlabReader:
    """A CT that arrives in messages, spooled to an unnamed file; to be closed by the caller.

    Args:
        geometry, coding: from the checked header.
        requests: the messages after the header; voxels in file order, i fastest.

    Raises:
        InvalidInput: too few or too many bytes, NaN or infinite voxels, or a second header.
    """
    expected = geometry.voxels * coding.dtype.itemsize
    return spool_slabs(
        geometry, coding, _exactly(requests, expected, coding), spool_folder=spool_folder
    )


def _exactly(
    requests: Iterable[pb.AttendVolumeRequest], expected: int, coding: VoxelCoding
) -> Iterator[bytes]:
    received = 0
    for request in requests:
        if request.WhichOneof("part") != "voxels":
            raise InvalidInput(
                "malformed upload",
                expected="voxels after the header",
                got=request.WhichOneof("part") or "an empty message",
            )
        if len(request.voxels) % coding.dtype.itemsize:
            raise InvalidInput(
                "a message cuts a voxel in two",
                expected=f"a multiple of {coding.dtype.itemsize} bytes",
                got=len(request.voxels),
            )
        received += len(request.voxels)
        if received > expected:
            raise InvalidInput(
                "more voxels than the header announces",
                expected=f"{expected} bytes",
                got=f"at least {received}",
            )
        yield request.voxels
    if received < expected:
        raise InvalidInput(
            "fewer voxels than the header announces", expected=f"{expected} bytes", got=received
        )
