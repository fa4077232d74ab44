"""NIfTI files, read without trusting their headers.

Voxels are streamed through ISA-L's gzip in pieces of bounded size, so that the claims of a header
are checked against the bytes as they arrive, and memory is never allocated on its word. Errors name
the rule that was broken, never the file: callers, who know which case they read, add it by
`AtlasError.with_case`.

Refused are: 4D volumes (trailing axes of one voxel are fine), colour and complex voxels, NaN and
infinities, an affine that is missing (sform and qform code 0: the position would be a guess),
degenerate or not finite, and bytes that are fewer or more than the header claims.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip_threaded
from numpy.typing import NDArray

from atlas_core.errors import CorruptFile, LimitExceeded, UnsupportedVolume
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.itk_header import Packing, parse_itk_header, unpacked
from atlas_core.imaging.nifti_header import NiftiInfo, parse_header
from atlas_core.imaging.slab_reader import SlabReader, spool
from atlas_core.imaging.volume import DistinctValues, Volume, distinct_values
from atlas_core.imaging.voxel_decoder import (
    PIECE_VOXELS,
    ByteStream,
    Readable,
    VoxelCoding,
    VoxelDecoder,
    stored_pieces,
)
from atlas_core.regular_files import open_regular

MAX_VOXELS = 1 << 30
"""Default bound of one volume: 512×512×4096, four times the longest whole-body CT."""


MAX_DEFLATE_RATIO = 1032
"""Deflate codes at most 258 bytes in 2 bits: no honest gzip file expands more than this."""

LABEL_ROUNDING = 0.02
"""nibabel stores whole numbers that it holds as floats as integers with a slope, which brings them
back this far off. Probabilities have values between, too."""

FIRST_ALLOCATION_BYTES = 1 << 26
"""A volume up to 64 MiB is allocated at once; a larger one grows with the bytes that came."""

READ_AHEAD_BYTES = 1 << 20
"""Size of a decompressed block: smaller ones cost time, larger ones memory."""


@dataclass(frozen=True)
class LabelVolume:
    """A label map or mask: whole numbers, and which of them occur.

    Attributes:
        voxels: ``[i, j, k]``, uint8 if the values allow, else int32.
        geometry: its grid.
        values: the distinct values that occur, rising (0 included if it occurs).
    """

    voxels: NDArray[Any]
    geometry: VolumeGeometry
    values: tuple[int, ...]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[ByteStream, NiftiInfo]]:
    """The bytes of a file from its first voxel on, and its header."""
    with ExitStack() as stack:
        itk = parse_itk_header(path)
        file = stack.enter_context(open_regular(path if itk is None else itk.data))
        size = os.fstat(file.fileno()).st_size
        if itk is not None:
            _check_claim(itk.info, size)
            file.seek(itk.info.voxel_offset)
            yield ByteStream(_stream(stack, file, itk.packing)), itk.info
            return
        compressed = ByteStream(file).take(2) == b"\x1f\x8b"
        file.seek(0)
        data = ByteStream(_stream(stack, file, "gzip" if compressed else "raw"))
        info = replace(parse_header(data), compressed=compressed)
        _check_claim(info, size)
        yield data, info


def _stream(stack: ExitStack, file: BufferedReader, packing: Packing) -> Readable:
    """The bytes of `file` from where it stands, unpacked."""
    if packing == "raw":
        return file
    if packing == "gzip":
        # A thread of its own decompresses ahead (the C code frees the interpreter lock).
        ahead: Readable = stack.enter_context(
            igzip_threaded.open(file, "rb", threads=1, block_size=READ_AHEAD_BYTES)
        )
        return ahead
    return unpacked(file, packing)


def _check_claim(info: NiftiInfo, file_bytes: int) -> None:
    """Refuse a header that claims more voxels than a file of this size can hold."""
    most = file_bytes * MAX_DEFLATE_RATIO if info.compressed else file_bytes
    if info.voxel_offset + info.voxel_bytes > most:
        raise CorruptFile(
            "header claims more voxels than the file can hold",
            expected=f"{info.voxel_bytes} bytes of voxels",
            got=f"a file of {file_bytes} bytes{' (gzip)' if info.compressed else ''}",
            remedy="copy or download the file again",
        )


def _require_voxels(geometry: VolumeGeometry, max_voxels: int) -> None:
    if geometry.voxels > max_voxels:
        raise LimitExceeded(
            "volume is too large",
            expected=f"at most {max_voxels} voxels",
            got=f"{'×'.join(str(n) for n in geometry.shape)} = {geometry.voxels}",
            remedy="crop it, or raise the limit",
        )


def read_header(path: Path) -> NiftiInfo:
    """Reads and checks the header; voxels are not touched.

    Raises:
        NotFound: no such file.
        CorruptFile: it ends too early, or claims what it cannot hold.
        UnsupportedVolume: it is no 3D volume of numbers with a sound affine.
    """
    with _opened(Path(path)) as (_, info):
        return info


def read_volume(path: Path, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Reads a CT or label volume.

    Args:
        path: ``.nii`` or ``.nii.gz``, NIfTI-1 or -2; recognised by content.
        max_voxels: refuse larger volumes.

    Returns:
        Voxels ``[i, j, k]`` in Fortran order after slope and intercept: in the stored type if
        not scaled (64-bit and unsigned 32-bit integers become int32), int16 or int32 if scaled by
        whole numbers (uint16 with intercept −1024), float32 otherwise.

    Raises:
        NotFound, CorruptFile, UnsupportedVolume: as `read_header`; also NaN or infinite voxels.
        LimitExceeded: more than `max_voxels`.
    """
    with _opened(Path(path)) as (data, info):
        _require_voxels(info.geometry, max_voxels)
        values = VoxelDecoder(info.coding)
        voxels = _collect(data, info, values)
    values.require_finite(voxels.size)
    if info.coding.whole and info.coding.scaled:
        bounds = np.iinfo(np.int16)
        if bounds.min <= values.low and values.high <= bounds.max:
            voxels = voxels.astype(np.int16)
    return Volume(voxels.reshape(info.geometry.shape, order="F"), info.geometry)


def _collect(data: ByteStream, info: NiftiInfo, values: VoxelDecoder) -> NDArray[Any]:
    """All voxels in file order; memory grows with the bytes that arrived, never ahead of them."""
    total = info.geometry.voxels
    first = FIRST_ALLOCATION_BYTES // values.dtype.itemsize
    voxels = np.empty(min(total, first), values.dtype)
    filled = 0
    for stored in stored_pieces(data, info.coding, total, PIECE_VOXELS):
        if filled + stored.size > voxels.size:
            # realloc moves pages instead of copying them; at most twice what has come is held.
            voxels.resize(min(total, 2 * voxels.size), refcheck=False)
        voxels[filled : filled + stored.size] = values.decode(stored)
        filled += stored.size
    return voxels


def read_stored(path: Path, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Reads voxels as they are stored, before slope and intercept: an attention map as bytes.

    Raises:
        NotFound, CorruptFile, UnsupportedVolume, LimitExceeded: as `read_volume`.
    """
    with _opened(Path(path)) as (data, info):
        _require_voxels(info.geometry, max_voxels)
        plain = replace(info, coding=VoxelCoding(info.coding.dtype, 1.0, 0.0))
        voxels = _collect(data, plain, VoxelDecoder(plain.coding))
    return Volume(voxels.reshape(info.geometry.shape, order="F"), info.geometry)


def read_stored_slabs(
    path: Path, slices: int, *, max_voxels: int = MAX_VOXELS
) -> Generator[NDArray[Any]]:
    """The voxels as they are stored, `slices` indices of the last axis at a time, in file order.

    Yields:
        ``[i, j, k]``, the last one with the slices that are left; overwritten by the next.

    Raises:
        NotFound, CorruptFile, UnsupportedVolume, LimitExceeded: as `read_volume`, the second also
            after the last slab: only then the checksum is known.
    """
    with _opened(Path(path)) as (data, info):
        _require_voxels(info.geometry, max_voxels)
        i, j, _ = info.geometry.shape
        for piece in stored_pieces(data, info.coding, info.geometry.voxels, i * j * slices):
            yield piece.reshape((i, j, -1), order="F")


def read_pieces(
    path: Path, *, piece_voxels: int = PIECE_VOXELS, max_voxels: int = MAX_VOXELS
) -> Generator[NDArray[Any]]:
    """The values in file order (``i`` fastest), in memory bounded by a piece whatever the volume.

    Yields:
        One-dimensional pieces of `piece_voxels`, the last one with those that are left, of the type
        that `read_volume` gives before it narrows; overwritten by the next.

    Raises:
        NotFound, CorruptFile, UnsupportedVolume, LimitExceeded: as `read_volume`, some only after
            the last piece.
    """
    with _opened(Path(path)) as (data, info):
        _require_voxels(info.geometry, max_voxels)
        values = VoxelDecoder(info.coding)
        for stored in stored_pieces(data, info.coding, info.geometry.voxels, piece_voxels):
            yield values.decode(stored)
        values.require_finite(info.geometry.voxels)


def read_label_pieces(
    path: Path, *, piece_voxels: int = PIECE_VOXELS, max_voxels: int = MAX_VOXELS
) -> Generator[NDArray[Any]]:
    """The values of a mask or label map in file order, as `read_pieces` gives them, but whole.

    Raises:
        NotFound, CorruptFile, UnsupportedVolume, LimitExceeded: as `read_label`, some only after
            the last piece.
    """
    fractions, rounding = 0, _rounding(read_header(path))
    for piece in read_pieces(path, piece_voxels=piece_voxels, max_voxels=max_voxels):
        if piece.dtype.kind == "f":
            whole = np.rint(piece)
            fractions += int(np.count_nonzero(np.abs(piece - whole) > rounding))
            yield whole
        else:
            yield piece
    _require_whole(fractions)


def read_label_values(path: Path, *, max_voxels: int = MAX_VOXELS) -> tuple[int, ...]:
    """The distinct values of a mask or label map, rising, found in bounded memory.

    Raises:
        NotFound, CorruptFile, UnsupportedVolume, LimitExceeded: as `read_label`.
    """
    distinct = DistinctValues()
    for piece in read_label_pieces(path, max_voxels=max_voxels):
        if np.isfinite(piece).all():  # else the reader refuses it after the last piece
            distinct.add(piece)
    return _label_values(distinct.values)


def read_label(path: Path, *, max_voxels: int = MAX_VOXELS) -> LabelVolume:
    """Reads a mask or label map: whole numbers only.

    Raises:
        NotFound, CorruptFile, UnsupportedVolume, LimitExceeded: as `read_volume`; also values that
            are not whole numbers.
    """
    volume = read_volume(path, max_voxels=max_voxels)
    if volume.voxels.dtype.kind == "f":
        rounding, fractions = _rounding(read_header(path)), 0
        for k in range(volume.voxels.shape[2]):
            whole = np.rint(volume.voxels[..., k])
            fractions += int(np.count_nonzero(np.abs(volume.voxels[..., k] - whole) > rounding))
            volume.voxels[..., k] = whole
        _require_whole(fractions)
    values = _label_values(distinct_values(volume.voxels))
    dtype = label_dtype(values)
    return LabelVolume(np.asarray(volume.voxels.astype(dtype, copy=False)), volume.geometry, values)


def label_dtype(values: tuple[int, ...]) -> type[np.uint8 | np.int32]:
    """The type that `read_label` gives to a label of these values."""
    return np.uint8 if values[0] >= 0 and values[-1] <= 255 else np.int32


def _rounding(info: NiftiInfo) -> float:
    """How far a label value may lie off a whole number."""
    return LABEL_ROUNDING if info.coding.scaled and info.coding.dtype.kind in "iu" else 0.0


def _require_whole(fractions: int) -> None:
    if fractions:
        raise UnsupportedVolume(
            f"{fractions} voxels of the label are not whole numbers",
            remedy="store label values, not probabilities",
        )


def _label_values(values: tuple[int, ...]) -> tuple[int, ...]:
    bounds = np.iinfo(np.int32)
    if values[0] < bounds.min or values[-1] > bounds.max:
        raise UnsupportedVolume(
            "label values do not fit 32 bits",
            got=f"{values[0]}..{values[-1]}",
            remedy="number the labels from 1 on",
        )
    return values


def open_slabs(
    path: Path, *, max_voxels: int = MAX_VOXELS, spool_folder: Path | None = None
) -> SlabReader:
    """Opens a CT for slab-wise reading in bounded memory; use it as a context manager.

    The decompressed voxels go to an unlinked temporary file, turned to RAS+ chunk by chunk, so that
    every canonical slab is one read per chunk whatever the file's axis order. The whole stream is
    checked before the first slab is given out.

    Args:
        spool_folder: where the temporary file lies; None: the system's (``TMPDIR``).

    Raises:
        NotFound, CorruptFile, UnsupportedVolume, LimitExceeded: as `read_volume`.
        Unavailable: no room for the temporary file.
    """
    with _opened(Path(path)) as (data, info):
        _require_voxels(info.geometry, max_voxels)
        return spool(data, info.geometry, info.coding, spool_folder)
