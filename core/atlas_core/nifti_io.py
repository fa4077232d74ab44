"""NIfTI files: read with suspicion, written all or nothing.

The only module that knows nibabel, and only for headers: voxels are streamed through ISA-L's gzip
in pieces of bounded size, so that what a header claims is checked against the bytes as they come
and never allocated on its word. Errors name the rule that was broken, never the file: callers,
who know which case they read, add it by `AtlasError.with_case`.

Refused are: 4D volumes (trailing axes of one voxel are fine), colour and complex voxels, NaN and
infinities, an affine that is missing (sform and qform code 0: the position would be a guess),
degenerate or not finite, and bytes that are fewer or more than the header claims.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import nibabel as nib
import numpy as np
from isal import igzip_threaded
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from atlas_core.errors import (
    CorruptFile,
    GridMismatch,
    InvalidInput,
    LimitExceeded,
    NotFound,
    UnsupportedVolume,
)
from atlas_core.geometry import VolumeGeometry
from atlas_core.slabs import CHUNK_BYTES, SlabReader, spool, spool_slabs
from atlas_core.volume import Volume, content_sha256, distinct_values
from atlas_core.voxel_stream import (
    PIECE_VOXELS,
    ByteStream,
    Readable,
    VoxelCoding,
    VoxelDecoder,
    cut_off,
    stored_pieces,
)

__all__ = [
    "LabelVolume",
    "NiftiInfo",
    "SlabReader",
    "SlabWriter",
    "Volume",
    "VoxelCoding",
    "content_sha256",
    "open_slabs",
    "read_header",
    "read_label",
    "read_stored",
    "read_stored_slabs",
    "read_volume",
    "spool_slabs",
    "write_volume",
]

MAX_VOXELS = 1 << 30
"""Default bound of one volume: 512×512×4096, four times the longest whole-body CT."""

MAX_HEADER_BYTES = 1 << 24
"""Header extensions are skipped; 16 MiB is more than any tool writes."""

MAX_DEFLATE_RATIO = 1032
"""Deflate codes at most 258 bytes in 2 bits: no honest gzip file expands more than this."""

FIRST_ALLOCATION_BYTES = 1 << 26
"""A volume up to 64 MiB is allocated at once; a larger one grows with the bytes that came."""

READ_AHEAD_BYTES = 1 << 20
"""Block that the decompressing thread hands over: smaller ones cost time, larger ones memory."""

GZIP_LEVEL = 2
"""ISA-L's level, of 0..3. Measured on a 105 MB CT and 2 cores: level 1 62.1 MB in 0.30 s, level 2
60.4 MB in 0.31 s, level 3 60.3 MB in 0.41 s; zlib's default needs 8 s for a comparable size."""

BLOCK_BYTES = 1 << 20
"""Blocks that are compressed side by side. Their boundaries show in the bytes of the file, so that
they are fixed: a file written slab by slab equals the one written whole."""

GZIP_THREADS = 2
"""Compressing threads of a whole-volume write. The bytes do not depend on it."""

SINGLE_FILE_OFFSET = 352
"""Where voxels of a NIfTI-1 ``.nii`` begin: 348 bytes of header, 4 that say "no extension"."""

READABLE = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2",
    768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""NIfTI data type code → NumPy type, of the types that can be a CT or a label."""

NOT_SCALAR = {
    1: "1-bit", 32: "complex64", 128: "RGB24", 1536: "float128", 1792: "complex128",
    2048: "complex256", 2304: "RGBA32",
}  # fmt: skip

WRITABLE = ("uint8", "int8", "int16", "uint16", "int32", "float32")

MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""NIfTI unit code (unknown, metre, millimetre, micrometre) → mm. Unknown means mm in practice: it
is what nibabel writes when nobody says."""


@dataclass(frozen=True)
class NiftiInfo:
    """What a header says, checked.

    Attributes:
        geometry: grid in mm RAS+ (metres and micrometres are converted).
        coding: stored data type with its byte order, slope and intercept.
        voxel_offset: position of the first voxel in the decompressed bytes.
        compressed: the file is gzip, whatever its name says.
        warnings: what is unusual but readable, in plain words.
    """

    geometry: VolumeGeometry
    coding: VoxelCoding
    voxel_offset: int
    compressed: bool
    warnings: tuple[str, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.coding.dtype

    @property
    def slope(self) -> float:
        return self.coding.slope

    @property
    def intercept(self) -> float:
        return self.coding.intercept

    @property
    def voxel_bytes(self) -> int:
        """Bytes of voxels that the header claims."""
        return self.geometry.voxels * int(self.coding.dtype.itemsize)


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
    try:
        file = path.open("rb")
    except OSError as error:
        raise NotFound("file cannot be opened", got=error.strerror) from None
    with ExitStack() as stack:
        stack.enter_context(file)
        compressed = file.peek(2)[:2] == b"\x1f\x8b"
        size = os.fstat(file.fileno()).st_size
        stream: Readable = file
        if compressed:
            # A thread of its own decompresses ahead (the C code frees the interpreter lock).
            stream = stack.enter_context(
                igzip_threaded.open(file, "rb", threads=1, block_size=READ_AHEAD_BYTES)
            )
        data = ByteStream(stream)
        info = replace(_parse_header(data), compressed=compressed)
        _check_claim(info, size)
        yield data, info


def _check_claim(info: NiftiInfo, file_bytes: int) -> None:
    """Refuses at once what no number of bytes in this file can satisfy."""
    most = file_bytes * MAX_DEFLATE_RATIO if info.compressed else file_bytes
    if info.voxel_offset + info.voxel_bytes > most:
        raise CorruptFile(
            "header claims more voxels than the file can hold",
            expected=f"{info.voxel_bytes} bytes of voxels",
            got=f"a file of {file_bytes} bytes{' (gzip)' if info.compressed else ''}",
            remedy="copy or download the file again",
        )


def _parse_header(data: ByteStream) -> NiftiInfo:
    """Header at the start of `data`; leaves `data` at the first voxel."""
    block = data.take(4)
    header_class, order = _header_kind(block)
    block += data.take(header_class.template_dtype.itemsize - 4)
    if len(block) < header_class.template_dtype.itemsize:
        raise cut_off(f"a header of {header_class.template_dtype.itemsize} bytes", len(block))
    header = header_class(block, order, check=False)
    _check_magic(header)
    shape = _shape(header)
    coding = _coding(header, order)
    offset = _voxel_offset(header, len(block))
    geometry, warnings = _geometry(header, shape)
    skipped = data.take(offset - len(block))
    if len(skipped) < offset - len(block):
        raise cut_off(f"voxels from byte {offset} on", len(block) + len(skipped))
    return NiftiInfo(geometry, coding, offset, compressed=False, warnings=warnings)


def _header_kind(first: bytes) -> tuple[Any, str]:
    """Header class and byte order, by the size that the first four bytes name."""
    if len(first) < 4:
        raise cut_off("a NIfTI header", f"{len(first)} bytes")
    for order, word in (("<", "little"), (">", "big")):
        size = int.from_bytes(first, word)  # type: ignore[arg-type]
        if size == 348:
            return nib.Nifti1Header, order
        if size == 540:
            return nib.Nifti2Header, order
    raise UnsupportedVolume("not a NIfTI file", remedy="convert it to NIfTI (.nii.gz) first")


def _check_magic(header: Any) -> None:
    magic = bytes(header["magic"])[:3]
    if magic in (b"ni1", b"ni2"):
        raise UnsupportedVolume(
            "header without voxels (.hdr/.img pair)", remedy="convert it to one .nii.gz file"
        )
    if magic not in (b"n+1", b"n+2"):
        raise UnsupportedVolume(
            "not a NIfTI file (Analyze 7.5 has no reliable orientation)",
            remedy="convert it to NIfTI (.nii.gz) from its source",
        )


def _shape(header: Any) -> tuple[int, int, int]:
    """Voxels along i, j, k; trailing axes of one voxel are dropped."""
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise CorruptFile("header names an impossible number of axes", expected="1..7", got=dim[0])
    axes = dim[1 : dim[0] + 1]
    while len(axes) > 3 and axes[-1] == 1:
        axes.pop()
    if min(axes) < 1:
        raise CorruptFile("header claims an empty or negative axis", got=tuple(axes))
    if len(axes) != 3:
        raise UnsupportedVolume(
            f"volume has {len(axes)} axes",
            expected="3",
            got="×".join(str(n) for n in axes),
            remedy="store each 3D volume in a file of its own",
        )
    return (axes[0], axes[1], axes[2])


def _coding(header: Any, order: str) -> VoxelCoding:
    code = int(header["datatype"])
    if code not in READABLE:
        raise UnsupportedVolume(
            "voxels are not plain numbers",
            expected="8 to 64 bit integers or floats",
            got=NOT_SCALAR.get(code, f"data type code {code}"),
            remedy="store Hounsfield units or label values",
        )
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0.0 or not np.isfinite(slope):
        # The standard's way to say "not scaled"; NaN is how nibabel writes it.
        slope, intercept = 1.0, 0.0
    if not np.isfinite(intercept):
        raise CorruptFile("scl_inter is not finite", got=intercept, remedy="mend the header")
    return VoxelCoding(np.dtype(order + READABLE[code]), slope, intercept)


def _voxel_offset(header: Any, header_bytes: int) -> int:
    """Position of the first voxel; 0 means "right behind the header", as the standard says."""
    offset = float(header["vox_offset"])
    least = header_bytes + 4
    if offset == 0.0:
        return least
    if not (offset.is_integer() and least <= offset <= MAX_HEADER_BYTES):
        raise CorruptFile(
            "header names an impossible position of its voxels",
            expected=f"{least}..{MAX_HEADER_BYTES}",
            got=offset,
        )
    return int(offset)


def _geometry(header: Any, shape: tuple[int, int, int]) -> tuple[VolumeGeometry, tuple[str, ...]]:
    """Grid in mm, from the sform, else the qform (as nibabel and FSL choose)."""
    unit = int(header["xyzt_units"]) & 7
    if unit not in MM_PER_UNIT:
        raise UnsupportedVolume("header names an unknown unit of length", got=f"code {unit}")
    scale = np.array([[MM_PER_UNIT[unit]]] * 3 + [[1.0]])
    # What is not finite is refused below; it needs no warning on the way.
    with np.errstate(all="ignore"):
        sform = header.get_sform(coded=True)[0]
        qform = _qform(header)
    affine = sform if sform is not None else qform
    if affine is None:
        raise UnsupportedVolume(
            "affine is missing (sform and qform code are 0)",
            remedy="convert again from the source, or copy the header of a volume on the same grid",
        )
    geometry = VolumeGeometry.from_array(shape, scale * affine)
    warnings = []
    if sform is not None and qform is not None:
        apart = _corners_apart_mm(geometry, shape, scale * qform)
        if not apart <= 0.5 * min(geometry.spacing_mm):
            warnings.append(f"sform and qform disagree by up to {apart:.1f} mm; the sform is used")
    return geometry, tuple(warnings)


def _qform(header: Any) -> NDArray[np.float64] | None:
    """The qform's affine, or None where it is absent; a broken one counts only without an sform."""
    try:
        affine: NDArray[np.float64] | None = header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError) as error:
        if int(header["sform_code"]) > 0:
            return None
        raise UnsupportedVolume("qform is no rotation", remedy="mend the header") from error
    return affine


def _corners_apart_mm(
    geometry: VolumeGeometry, shape: tuple[int, int, int], affine: NDArray[np.float64]
) -> float:
    try:
        other = VolumeGeometry.from_array(shape, affine)
    except UnsupportedVolume:
        return float("inf")
    return float(np.linalg.norm(geometry.corners_mm() - other.corners_mm(), axis=1).max())


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
    """All voxels in file order; memory grows with the bytes that came, never ahead of them."""
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


def read_label(path: Path, *, max_voxels: int = MAX_VOXELS) -> LabelVolume:
    """Reads a mask or label map: whole numbers only.

    Raises:
        NotFound, CorruptFile, UnsupportedVolume, LimitExceeded: as `read_volume`; also values that
            are not whole numbers.
    """
    volume = read_volume(path, max_voxels=max_voxels)
    if volume.voxels.dtype.kind == "f":
        planes = (volume.voxels[..., k] for k in range(volume.voxels.shape[2]))
        fractions = sum(int(np.count_nonzero(plane != np.rint(plane))) for plane in planes)
        if fractions:
            raise UnsupportedVolume(
                f"{fractions} voxels of the label are not whole numbers",
                remedy="store label values, not probabilities",
            )
    values = distinct_values(volume.voxels)
    bounds = np.iinfo(np.int32)
    if values[0] < bounds.min or values[-1] > bounds.max:
        raise UnsupportedVolume("label values do not fit 32 bits", got=f"{values[0]}..{values[-1]}")
    dtype = np.uint8 if values[0] >= 0 and values[-1] <= 255 else np.int32
    return LabelVolume(np.asarray(volume.voxels.astype(dtype, copy=False)), volume.geometry, values)


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


class _Sink:
    """A NIfTI file in the making: bytes go to a hidden neighbour, which takes the name at the end.

    The header says shape, data type, slope, sform and (for grids without shear) qform, millimetres,
    and nothing else: free text is where patient data hides. Equal input gives equal bytes.
    """

    def __init__(
        self, path: Path, geometry: VolumeGeometry, dtype: DTypeLike, slope: float, threads: int
    ) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype.name not in WRITABLE:
            raise InvalidInput(
                "voxels cannot be written as NIfTI here",
                expected=f"one of {', '.join(WRITABLE)}",
                got=self.dtype.name,
            )
        header = _header_bytes(geometry, self.dtype, slope)
        self._path = path
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
        self._sha256 = hashlib.sha256()
        self._file = self._partial.open("xb")
        self._compressor: IO[bytes] | None = None
        self._block = bytearray()
        if path.suffix != ".nii":
            self._compressor = igzip_threaded.open(
                self, "wb", GZIP_LEVEL, threads=threads, block_size=BLOCK_BYTES
            )
        self._append(header)

    def write(self, data: bytes | memoryview, /) -> int:
        """Bytes of the file itself, behind the compressor."""
        self._sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """For the compressor."""
        self._file.flush()

    def _append(self, data: bytes | memoryview) -> None:
        """Uncompressed bytes; they reach the compressor in equal blocks, however they arrive."""
        if self._compressor is None:
            self.write(data)
            return
        rest = memoryview(data)
        while rest:
            room = BLOCK_BYTES - len(self._block)
            self._block += rest[:room]
            rest = rest[room:]
            if len(self._block) == BLOCK_BYTES:
                self._compress_block()

    def _compress_block(self) -> None:
        assert self._compressor is not None
        self._compressor.write(self._block)
        self._block.clear()

    def put(self, voxels: NDArray[Any]) -> None:
        """Appends `voxels` ``[i, j, k]``, complete planes of the file.

        Raises:
            InvalidInput: NaN or infinite values.
        """
        planes = np.ascontiguousarray(voxels.transpose(2, 1, 0), dtype=self.dtype)
        if self.dtype.kind == "f" and not np.isfinite(planes).all():
            raise InvalidInput("voxels to be written are NaN or infinite")
        self._append(planes.reshape(-1).view(np.uint8).data)

    def commit(self) -> str:
        """Makes the file appear under its name, complete and on disk; returns its SHA-256."""
        if self._compressor is not None:
            self._compress_block()
            self._compressor.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return self._sha256.hexdigest()

    def discard(self) -> None:
        """Leaves nothing behind."""
        try:
            if self._compressor is not None:
                self._compressor.close()
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)


def _header_bytes(geometry: VolumeGeometry, dtype: np.dtype[Any], slope: float) -> bytes:
    """A little-endian NIfTI-1 header and the four bytes that say "no extension"."""
    if max(geometry.shape) > np.iinfo(np.int16).max:
        raise LimitExceeded(
            "an axis is too long for NIfTI-1", expected="at most 32767", got=max(geometry.shape)
        )
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(geometry.shape)
    header.set_xyzt_units("mm")
    header.set_sform(geometry.matrix, code=1)
    try:
        header.set_qform(geometry.matrix, code=1, strip_shears=False)
    except HeaderDataError:
        # A quaternion cannot express shear: better no qform than a different grid.
        header.set_qform(None, code=0)
        header["pixdim"][1:4] = geometry.spacing_mm
    header["scl_slope"], header["scl_inter"] = slope, 0.0
    header["vox_offset"], header["magic"] = SINGLE_FILE_OFFSET, b"n+1"
    return bytes(header.binaryblock) + b"\0\0\0\0"


def write_volume(
    path: Path, voxels: NDArray[Any], geometry: VolumeGeometry, *, slope: float = 1.0
) -> str:
    """Writes a volume all or nothing: `path` then holds it completely, or what it held before.

    Args:
        path: ``.nii.gz``, or ``.nii`` for an uncompressed file; its folder exists.
        voxels: ``[i, j, k]`` in any memory order; bool is written as uint8.
        slope: value of one stored unit (scl_slope).

    Returns:
        SHA-256 of the file, in hex. Equal voxels and geometry give equal bytes.

    Raises:
        GridMismatch: `voxels` has another shape than `geometry`.
        InvalidInput: a data type that is not written here, NaN or infinite values.
    """
    if voxels.shape != geometry.shape:
        raise GridMismatch(
            "voxels and geometry have different shapes", expected=geometry.shape, got=voxels.shape
        )
    if voxels.dtype == np.bool_:
        voxels = voxels.view(np.uint8)
    sink = _Sink(Path(path), geometry, voxels.dtype, slope, GZIP_THREADS)
    planes = max(1, CHUNK_BYTES // (voxels[..., 0].size * voxels.dtype.itemsize))
    try:
        for start in range(0, voxels.shape[2], planes):
            sink.put(voxels[..., start : start + planes])
        return sink.commit()
    except BaseException:
        sink.discard()
        raise


@dataclass(frozen=True)
class _Piece:
    """One spooled piece: indices [start, stop) along the writer's axis, k slowest."""

    offset: int
    start: int
    stop: int


class SlabWriter:
    """Writes a NIfTI file out of pieces, in memory bounded by a piece; all or nothing.

    Pieces cover [start, stop) along one file axis, in rising or falling order without gaps, and
    all of the other axes. Along the slowest axis and rising they go straight into the file;
    otherwise they wait in an unlinked temporary file beside it.

    Use as a context manager: leaving it completes the file, an exception (or a missing piece)
    leaves nothing behind.

    Attributes:
        sha256: of the file, once it is complete.
    """

    def __init__(
        self, path: Path, geometry: VolumeGeometry, dtype: DTypeLike, *, slope: float = 1.0
    ) -> None:
        self.sha256: str | None = None
        self._folder = Path(path).parent
        self._geometry = geometry
        # One thread: many writers are open at once, one for each organ.
        self._sink = _Sink(Path(path), geometry, dtype, slope, 1)
        self._axis: int | None = None
        self._rising = True
        self._next = 0
        self._covered = 0
        self._spool: IO[bytes] | None = None
        self._pieces: list[_Piece] = []

    def write(self, axis: int, start: int, stop: int, block: NDArray[Any]) -> None:
        """Adds the indices [start, stop) along file axis `axis`.

        Args:
            block: ``[i, j, k]``, of the geometry's shape but for ``stop - start`` along `axis`.

        Raises:
            InvalidInput: out of order, another axis than before, another shape or data type.
        """
        self._expect(axis, start, stop, block)
        self._covered += stop - start
        self._next = stop if self._rising else start
        if axis == 2 and self._rising:
            self._sink.put(block)
            return
        if self._spool is None:
            self._spool = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  closed in _end
        self._pieces.append(_Piece(self._spool.tell(), start, stop))
        self._spool.write(
            np.ascontiguousarray(block.transpose(2, 1, 0)).reshape(-1).view(np.uint8).data
        )

    def _expect(self, axis: int, start: int, stop: int, block: NDArray[Any]) -> None:
        if axis not in (0, 1, 2) or (self._axis is not None and axis != self._axis):
            raise InvalidInput("pieces lie along different axes", expected=self._axis, got=axis)
        length = self._geometry.shape[axis]
        if self._axis is None:
            self._rising = start == 0
            self._next = 0 if self._rising else length
        self._axis = axis
        in_order = start == self._next if self._rising else stop == self._next
        if not (in_order and 0 <= start < stop <= length):
            raise InvalidInput(
                "piece is out of order",
                expected=f"{'start' if self._rising else 'stop'} {self._next} of {length}",
                got=f"[{start}, {stop})",
            )
        shape = tuple(stop - start if a == axis else n for a, n in enumerate(self._geometry.shape))
        if block.shape != shape or block.dtype != self._sink.dtype:
            raise InvalidInput(
                "piece has another shape or data type",
                expected=f"{shape} {self._sink.dtype}",
                got=f"{block.shape} {block.dtype}",
            )

    def close(self) -> str:
        """Completes the file; returns its SHA-256.

        Raises:
            InvalidInput: pieces are missing; nothing is left behind.
        """
        if self.sha256 is not None:
            return self.sha256
        try:
            length = self._geometry.shape[self._axis or 0]
            if self._axis is None or self._covered < length:
                raise InvalidInput(
                    "volume is incomplete", expected=f"{length} indices", got=self._covered
                )
            self._replay()
            self.sha256 = self._sink.commit()
        except BaseException:
            self.discard()
            raise
        self._end()
        return self.sha256

    def discard(self) -> None:
        """Gives up: nothing is left behind."""
        self._sink.discard()
        self._end()

    def _end(self) -> None:
        if self._spool is not None:
            self._spool.close()

    def _replay(self) -> None:
        """Puts the spooled pieces into the file in its own order, a bounded chunk at a time."""
        if self._spool is None:
            return
        self._spool.flush()
        shape, itemsize = self._geometry.shape, self._sink.dtype.itemsize
        planes = max(1, CHUNK_BYTES // (shape[0] * shape[1] * itemsize))
        for start in range(0, shape[2], planes):
            stop = min(start + planes, shape[2])
            chunk = np.empty((stop - start, shape[1], shape[0]), self._sink.dtype)
            for piece in self._pieces:
                self._fetch(piece, start, stop, chunk)
            self._sink.put(chunk.transpose(2, 1, 0))

    def _fetch(self, piece: _Piece, start: int, stop: int, chunk: NDArray[Any]) -> None:
        """Copies what `piece` holds of the planes [start, stop) into `chunk` ``[k, j, i]``."""
        assert self._spool is not None
        assert self._axis is not None
        first, last = (start, stop)
        where = [slice(None)] * 3
        if self._axis == 2:
            first, last = max(start, piece.start), min(stop, piece.stop)
            where[0] = slice(first - start, last - start)
            first, last = first - piece.start, last - piece.start
        else:
            where[2 - self._axis] = slice(piece.start, piece.stop)
        if first >= last:
            return
        part = chunk[tuple(where)]
        plane_bytes = part[0].size * part.itemsize
        self._spool.seek(piece.offset + first * plane_bytes)
        raw = self._spool.read((last - first) * plane_bytes)
        part[...] = np.frombuffer(raw, self._sink.dtype).reshape(part.shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self.sha256 is None:
            self.discard()
