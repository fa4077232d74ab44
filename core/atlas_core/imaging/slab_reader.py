"""Canonical slabs of a volume in bounded memory, whatever the axis order it was stored in."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from atlas_core.errors import CorruptFile, InvalidInput, LimitExceeded, Unavailable
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.voxel_decoder import ByteStream, VoxelCoding, VoxelDecoder, stored_pieces

MAX_PLANE_VOXELS = 1 << 26
"""Largest plane (8192×8192) that is read slab by slab: a slab is at least one plane in memory."""

CHUNK_BYTES = 1 << 24
"""Planes are spooled in chunks of about 16 MiB: few enough system calls, little memory."""


@dataclass(frozen=True)
class _Chunk:
    """Consecutive planes as they lie in the spool: canonical ``[z, y, x]``, z slowest.

    Attributes:
        offset: byte in the spool where it begins.
        start: canonical index of its first voxel along z, y, x.
        shape: its voxels along z, y, x.
    """

    offset: int
    start: tuple[int, int, int]
    shape: tuple[int, int, int]


class SlabReader:
    """Canonical slabs of a volume out of a spool, in any order and from any thread.

    Attributes:
        geometry: grid in the file's own axis order.
        canonical: the same grid, axes turned to RAS+.
    """

    def __init__(
        self,
        geometry: VolumeGeometry,
        coding: VoxelCoding,
        spool: IO[bytes],
        chunks: tuple[_Chunk, ...],
    ) -> None:
        self.geometry = geometry
        self.canonical = geometry.canonical()
        self._coding = coding
        self._spool = spool
        self._chunks = chunks

    @property
    def slices(self) -> int:
        """Number of canonical axial slices."""
        return self.canonical.shape[2]

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Slices [start, stop) along canonical z.

        Returns:
            Values (Hounsfield units) ``[z, y, x]``, C order: z rises to superior, y to anterior, x
            to the patient's right.

        Raises:
            InvalidInput: the range is empty or leaves the volume.
        """
        nx, ny, nz = self.canonical.shape
        if not 0 <= start < stop <= nz:
            raise InvalidInput(
                "slab lies outside the volume", expected=f"0 <= start < stop <= {nz}",
                got=f"[{start}, {stop})",
            )  # fmt: skip
        slab = np.empty((stop - start, ny, nx), np.float32)
        values = VoxelDecoder(self._coding)
        for chunk in self._chunks:
            low, high = max(start, chunk.start[0]), min(stop, chunk.start[0] + chunk.shape[0])
            if low < high:
                _, y, x = chunk.start
                _, y_size, x_size = chunk.shape
                part = slab[low - start : high - start, y : y + y_size, x : x + x_size]
                for plane, stored in zip(part, self._stored(chunk, low, high), strict=True):
                    plane[...] = values.decode(stored)
        return slab

    def _stored(self, chunk: _Chunk, low: int, high: int) -> NDArray[Any]:
        """Stored numbers of canonical slices [low, high) of one chunk."""
        shape = (high - low, *chunk.shape[1:])
        stored = np.empty(shape, self._coding.dtype.newbyteorder("="))
        view = stored.reshape(-1).view(np.uint8).data
        position = chunk.offset + (low - chunk.start[0]) * (stored.nbytes // (high - low))
        while view:
            count = os.preadv(self._spool.fileno(), [view], position)
            if not count:
                raise CorruptFile("spool of the volume was cut off", remedy="free disk space")
            view, position = view[count:], position + count
        return stored

    def close(self) -> None:
        """Frees the spool; it was never a named file."""
        self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def spool_slabs(
    geometry: VolumeGeometry,
    coding: VoxelCoding,
    pieces: Iterable[bytes],
    *,
    spool_folder: Path | None = None,
) -> SlabReader:
    """Slabs of a volume that arrives as bytes in file order (``i`` fastest), in pieces of any size.

    Raises:
        CorruptFile: fewer or more bytes than `geometry` needs.
        UnsupportedVolume: NaN or infinite voxels.
        LimitExceeded: a single plane is too large.
        Unavailable: no room for the temporary file.
    """
    return spool(ByteStream(_PieceStream(pieces)), geometry, coding, spool_folder)


class _PieceStream:
    """Pieces of bytes as one stream."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def spool(
    data: ByteStream, geometry: VolumeGeometry, coding: VoxelCoding, folder: Path | None
) -> SlabReader:
    plane = geometry.shape[0] * geometry.shape[1]
    for voxels in (plane, geometry.voxels // geometry.canonical().shape[2]):
        if voxels > MAX_PLANE_VOXELS:
            raise LimitExceeded(
                "a plane of the volume is too large to be read slab by slab",
                expected=f"at most {MAX_PLANE_VOXELS} voxels",
                got=voxels,
                remedy="cut the volume into parts",
            )
    planes = max(1, CHUNK_BYTES // (plane * coding.dtype.itemsize))
    values = VoxelDecoder(coding)
    with ExitStack() as stack, _room_for_spool():
        spool = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        chunks: list[_Chunk] = []
        start = 0
        for stored in stored_pieces(data, coding, geometry.voxels, planes * plane):
            values.inspect(stored)
            block = stored.reshape((*geometry.shape[:2], -1), order="F")
            chunks.append(_spool_chunk(spool, geometry, block, start))
            start += block.shape[2]
        values.require_finite(geometry.voxels)
        spool.flush()
        stack.pop_all()
    return SlabReader(geometry, coding, spool, tuple(chunks))


@contextmanager
def _room_for_spool() -> Iterator[None]:
    """A full disk is no fault of the volume, and may have room again later."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            "volume cannot be spooled",
            got=error.strerror,
            remedy="free space in the temporary folder, or set TMPDIR to a larger one",
        ) from None


def _spool_chunk(
    spool: IO[bytes], geometry: VolumeGeometry, block: NDArray[Any], start: int
) -> _Chunk:
    """Appends planes ``[i, j, start:start+n]`` to the spool, turned to canonical ``[z, y, x]``."""
    turned = np.ascontiguousarray(geometry.axis_map.to_canonical(block).transpose(2, 1, 0))
    axis = geometry.axis_map.source.index(2)
    if geometry.axis_map.flip[axis]:
        start = geometry.shape[2] - start - block.shape[2]
    corner = [0, 0, 0]
    corner[2 - axis] = start
    offset = spool.tell()
    spool.write(turned.reshape(-1).view(np.uint8).data)
    z, y, x = turned.shape
    return _Chunk(offset, (corner[0], corner[1], corner[2]), (z, y, x))
