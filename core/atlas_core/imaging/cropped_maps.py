"""Maps that are zero nearly everywhere, stored cropped to the box of what is not zero.

A map lies on the grid of a CT; its file holds the smallest box around its voxels above zero, with
an affine of its own, so every program that goes by geometry shows it in its place. A map of zeros
has no file. A file of the whole grid is a box too, and is read the same.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from atlas_core.geometry import Shape3, VolumeGeometry
from atlas_core.imaging.nifti_reader import (
    MAX_VOXELS,
    read_header,
    read_stored,
    read_stored_slabs,
)
from atlas_core.imaging.nifti_writer import write_pieces
from atlas_core.imaging.slab_reader import CHUNK_BYTES

SPOOL_LEVEL = 0
"""ISA-L's fastest level: pieces wait compressed, or scattered specks would fill the disk with the
zeros between them."""

FILES_AT_ONCE = 2
"""Files that are written side by side at the end; bounds memory."""


@dataclass(frozen=True)
class _Piece:
    """What a block held above zero, compressed in the spool.

    Attributes:
        offset, length: where its bytes lie.
        start, stop: its box on the grid, i, j, k.
    """

    offset: int
    length: int
    start: Shape3
    stop: Shape3


class CroppedMapsWriter:
    """Writes maps of bytes on one grid out of blocks, each map into a cropped file of its own.

    The boxes are known only at the end; until then what is not zero waits, compressed, in one
    unlinked temporary file. Memory is bounded by a block, whatever the number of maps and voxels;
    one file is open beside the temporary one. Use as a context manager, and `finish` within it.

    Args:
        folder: of the temporary file.
        geometry: grid of the maps.
        slope: value of one stored unit (scl_slope).
    """

    def __init__(self, folder: Path, geometry: VolumeGeometry, *, slope: float = 1.0) -> None:
        self._geometry = geometry
        self._slope = slope
        self._spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by __exit__
        self._spooled = 0
        self._pieces: defaultdict[Path, list[_Piece]] = defaultdict(list)

    def add(self, path: Path, start: Shape3, block: NDArray[np.uint8]) -> None:
        """Adds a part of a map; the parts of one map do not overlap, and what is missing is zero.

        Args:
            path: the map's file.
            start: where the block begins on the grid.
            block: ``[i, j, k]``, best with i fastest in memory.
        """
        planes = block.transpose(2, 1, 0)
        box = _occupied(planes)
        if box is None:
            return
        data = isal_zlib.compress(np.ascontiguousarray(planes[box]).data, SPOOL_LEVEL)
        k, j, i = box
        self._pieces[path].append(
            _Piece(
                self._spooled,
                len(data),
                (start[0] + i.start, start[1] + j.start, start[2] + k.start),
                (start[0] + i.stop, start[1] + j.stop, start[2] + k.stop),
            )
        )
        self._spool.write(data)
        self._spooled += len(data)

    def finish(self) -> dict[Path, str]:
        """Writes the files, each all or nothing.

        Returns:
            SHA-256 of every file, in hex; maps of zeros have none.
        """
        self._spool.flush()
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            written = pool.map(self._write_file, self._pieces.keys(), self._pieces.values())
            return dict(zip(self._pieces, written, strict=True))

    def _write_file(self, path: Path, pieces: list[_Piece]) -> str:
        starts, stops = zip(*((piece.start, piece.stop) for piece in pieces), strict=True)
        start = tuple(np.min(starts, axis=0).tolist())
        shape = tuple((np.max(stops, axis=0) - start).tolist())
        return write_pieces(
            path,
            self._chunks(pieces, start, shape),
            self._geometry.cropped(start, shape),
            np.uint8,
            slope=self._slope,
        )

    def _chunks(
        self, pieces: list[_Piece], start: Shape3, shape: Shape3
    ) -> Iterator[NDArray[np.uint8]]:
        """The voxels of the box in file order, some planes at a time."""
        planes = max(1, CHUNK_BYTES // (shape[0] * shape[1]))
        for first in range(0, shape[2], planes):
            low = (*start[:2], start[2] + first)
            high = (
                start[0] + shape[0],
                start[1] + shape[1],
                start[2] + min(first + planes, shape[2]),
            )
            chunk = np.zeros([b - a for a, b in zip(low, high, strict=True)][::-1], np.uint8)
            for piece in pieces:
                if piece.start[2] < high[2] and low[2] < piece.stop[2]:
                    self._copy(piece, low, high, chunk)
            yield chunk.reshape(-1)

    def _copy(self, piece: _Piece, low: Shape3, high: Shape3, chunk: NDArray[np.uint8]) -> None:
        """Copies what `piece` holds between `low` and `high` into `chunk` ``[k, j, i]``."""
        # Not by the file's position, which the files that are written side by side would share.
        raw = isal_zlib.decompress(os.pread(self._spool.fileno(), piece.length, piece.offset))
        shape = [b - a for a, b in zip(piece.start, piece.stop, strict=True)][::-1]
        voxels = np.frombuffer(raw, np.uint8).reshape(shape)
        first = np.maximum(low, piece.start)
        last = np.minimum(high, piece.stop)
        target = tuple(map(slice, (first - low)[::-1], (last - low)[::-1]))
        source = tuple(map(slice, (first - piece.start)[::-1], (last - piece.start)[::-1]))
        chunk[target] = voxels[source]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._spool.close()


def _occupied(planes: NDArray[np.uint8]) -> tuple[slice, slice, slice] | None:
    """The smallest box of `planes` ``[k, j, i]`` that holds all that is not zero; None: nothing."""
    over_k = planes.max(axis=0)
    j = _range(over_k.max(axis=1))
    if j is None:
        return None
    i = _range(over_k[j].max(axis=0))
    k = _range(planes[:, j].max(axis=(1, 2)))
    assert i is not None
    assert k is not None
    return k, j, i


def _range(profile: NDArray[np.uint8]) -> slice | None:
    at = np.flatnonzero(profile)
    return slice(int(at[0]), int(at[-1]) + 1) if at.size else None


def read_cropped(
    path: Path, geometry: VolumeGeometry, *, case: str = "", max_voxels: int = MAX_VOXELS
) -> NDArray[np.uint8]:
    """A stored map on the whole grid, as bytes before slope and intercept.

    Args:
        geometry: grid of its CT.
        case: for messages.

    Returns:
        uint8 ``[i, j, k]``, i fastest in memory.

    Raises:
        GridMismatch: it is no box of that grid.
        NotFound, CorruptFile, UnsupportedVolume, LimitExceeded: as `read_stored`.
    """
    box = read_stored(path, max_voxels=max_voxels)
    start = geometry.start_of(box.geometry, this="CT", that="map", case=case)
    if box.geometry.shape == geometry.shape:
        return box.voxels
    whole = np.zeros(geometry.shape, np.uint8, order="F")
    whole[tuple(slice(a, a + n) for a, n in zip(start, box.geometry.shape, strict=True))] = (
        box.voxels
    )
    return whole


class CroppedMapReader:
    """Reads a stored map slab by slab along the last axis, rising; its file is open only while the
    slabs meet its box.

    Raises:
        GridMismatch: it is no box of `geometry`.
        NotFound, CorruptFile, UnsupportedVolume, LimitExceeded: as `read_stored_slabs`.
    """

    def __init__(
        self, path: Path, geometry: VolumeGeometry, *, max_voxels: int = MAX_VOXELS
    ) -> None:
        box = read_header(path).geometry
        self._start = geometry.start_of(box, this="CT", that="map")
        self._shape = box.shape
        self._path = path
        self._max_voxels = max_voxels
        self._next = self._start[2]
        self._planes: Generator[NDArray[np.uint8]] | None = None

    def read_into(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Copies what the map holds of the slices [start, stop) into `out` ``[i, j, k]`` of zeros.

        Raises:
            CorruptFile: also with the last slice: only then the checksum is known.
        """
        end = self._start[2] + self._shape[2]
        i, j = (slice(self._start[a], self._start[a] + self._shape[a]) for a in (0, 1))
        for k in range(max(start, self._next), min(stop, end)):
            if self._planes is None:
                self._planes = read_stored_slabs(self._path, 1, max_voxels=self._max_voxels)
            out[i, j, k - start] = next(self._planes)[..., 0]
            self._next = k + 1
            if self._next == end:
                next(self._planes, None)

    def close(self) -> None:
        """Closes the file."""
        if self._planes is not None:
            self._planes.close()
