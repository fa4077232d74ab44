"""Headers of NRRD and MetaImage files, as ITK and 3D Slicer write them, parsed and checked.

Both are text before, or beside, plain or deflated voxels, which are then read as those of NIfTI
are. With `nrrd_writer`, the only module that uses pynrrd.
"""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, Literal

import nrrd
import numpy as np
from numpy.typing import NDArray

from atlas_core.errors import AtlasError, CorruptFile, UnsupportedVolume
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.nifti_header import NiftiInfo
from atlas_core.imaging.voxel_decoder import Readable, VoxelCoding
from atlas_core.regular_files import open_regular

MAX_HEADER_BYTES: Final = 1 << 20
"""Of text: a hundred segments take some 50 kB."""

Packing = Literal["raw", "gzip", "zlib", "bzip2"]

NRRD_TYPES: Final = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
META_TYPES: Final = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip

TO_RAS: Final = {
    **dict.fromkeys(("left-posterior-superior", "LPS"), (-1.0, -1.0, 1.0)),
    **dict.fromkeys(("right-anterior-superior", "RAS"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "LAS"), (-1.0, 1.0, 1.0)),
}
"""Names of NRRD's spaces."""

PACKINGS: Final[Mapping[str, Packing]] = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2",
}  # fmt: skip


@dataclass(frozen=True)
class ItkInfo:
    """A checked header, and where its voxels are.

    Attributes:
        info: as of a NIfTI file; its offset counts in `data`.
        data: the file with the voxels, often the one with the header.
        packing: how they are packed from the offset on.
    """

    info: NiftiInfo
    data: Path
    packing: Packing


def parse_itk_header(path: Path) -> ItkInfo | None:
    """The header of an NRRD or MetaImage file; None if `path` is neither.

    Raises:
        NotFound: as `open_regular`.
        CorruptFile: the header ends too early, or contradicts itself.
        UnsupportedVolume: no 3D volume of numbers in a known space.
    """
    with open_regular(path) as file:
        head = file.read(32)
        parse = next((parse for magic, parse in _KINDS if magic.match(head)), None)
        if parse is None:
            return None
        head += file.read(MAX_HEADER_BYTES - len(head))
    try:
        return parse(path, head)
    except AtlasError:
        raise
    except Exception as error:  # pynrrd raises what it likes on damaged headers
        raise CorruptFile(
            "header is malformed", got=type(error).__name__, remedy="save it again, or as NIfTI"
        ) from None


def _nrrd(path: Path, head: bytes) -> ItkInfo:
    text, offset = _until(head, rb"\r?\n\r?\n")
    header = nrrd.read_header(text.decode("utf-8", "replace").splitlines())
    sizes = [int(n) for n in header["sizes"]]
    if len(sizes) == 4 and "list" in header.get("kinds", []):
        raise UnsupportedVolume(
            "segments overlap: they are stored in several layers",
            remedy="export them from 3D Slicer as binary label maps, one file each",
        )
    directions = np.asarray(header.get("space directions", np.empty((0, 3))), np.float64)
    space, origin = header.get("space"), header.get("space origin")
    if space not in TO_RAS or origin is None or directions.shape != (len(sizes), 3):
        raise UnsupportedVolume(
            "position or orientation is missing",
            expected="a space of three axes, with directions and an origin",
            got=f"space {space}",
            remedy="save it again from 3D Slicer or ITK",
        )
    for name in ("line skip", "byte skip", "lineskip", "byteskip"):
        if header.get(name):
            raise UnsupportedVolume(f"{name} is not read", remedy="save it again from 3D Slicer")
    packing = PACKINGS.get(str(header.get("encoding")).lower())
    if packing is None or header.get("type") not in NRRD_TYPES:
        raise _other_voxels(f"{header.get('type')}, encoding {header.get('encoding')}")
    big = str(header.get("endian", "little")).lower() == "big"
    data = header.get("data file", header.get("datafile"))
    affine = _affine(directions, np.asarray(origin, np.float64), TO_RAS[space])
    dtype = NRRD_TYPES[header["type"]]
    return _info(path, sizes, affine, (dtype, big), (packing, data, offset))


def _meta(path: Path, head: bytes) -> ItkInfo:
    text, offset = _until(head, rb"ElementDataFile\s*=[^\n]*\n?", inside=True)
    lines = (line.partition("=") for line in text.decode("utf-8", "replace").splitlines())
    header = {key.strip().lower(): value.strip() for key, _, value in lines}
    numbers = {
        key: [float(word) for word in header[key].split()]
        for key in (
            "dimsize",
            "elementspacing",
            "elementsize",
            "transformmatrix",
            "offset",
            "position",
        )
        if key in header
    }
    sizes = [int(n) for n in numbers["dimsize"]]
    matrix = np.array(numbers.get("transformmatrix", []))
    origin = np.array(numbers.get("offset", numbers.get("position", [])))
    spacing = np.array(numbers.get("elementspacing", numbers.get("elementsize", [])))
    if len(sizes) == 3 and (matrix.size, origin.size, spacing.size) != (9, 3, 3):
        raise UnsupportedVolume(
            "position or orientation is missing",
            expected="TransformMatrix, Offset and ElementSpacing of three axes",
            remedy="save it again from 3D Slicer or ITK",
        )
    yes = ("true", "1")
    kind = header.get("elementtype", "")
    channels, skipped = header.get("elementnumberofchannels", "1"), header.get("headersize", "0")
    binary = header.get("binarydata", "true").lower() in yes
    if kind not in META_TYPES or channels != "1" or skipped != "0" or not binary:
        raise _other_voxels(f"{kind}, {channels} channels, HeaderSize {skipped}")
    order = header.get("binarydatabyteordermsb", header.get("elementbyteordermsb", "false"))
    packing: Packing = "zlib" if header.get("compresseddata", "").lower() in yes else "raw"
    data = header["elementdatafile"]
    directions = matrix.reshape(3, 3) * spacing[:, None] if matrix.size == 9 else np.zeros((3, 3))
    affine = _affine(directions, origin, TO_RAS["LPS"])
    coding = (META_TYPES[kind], order.lower() in yes)
    return _info(path, sizes, affine, coding, (packing, None if data == "LOCAL" else data, offset))


_KINDS: Final[tuple[tuple[re.Pattern[bytes], Callable[[Path, bytes], ItkInfo]], ...]] = (
    (re.compile(rb"NRRD0"), _nrrd),
    (re.compile(rb"\s*(ObjectType|NDims|Comment)\s*="), _meta),
)
"""How a file begins, and what parses it then."""


def _until(head: bytes, end: bytes, *, inside: bool = False) -> tuple[bytes, int]:
    """The text of a header, and where the next byte is."""
    found = re.search(end, head)
    if found is None:  # a detached header may end without an empty line
        if len(head) == MAX_HEADER_BYTES:
            raise CorruptFile(
                "header has no end",
                expected=f"at most {MAX_HEADER_BYTES} bytes",
                remedy="copy the file again",
            )
        return head, len(head)
    return head[: found.end() if inside else found.start()], found.end()


def _affine(
    directions: NDArray[np.float64], origin: NDArray[np.float64], to_ras: tuple[float, ...]
) -> NDArray[np.float64]:
    """From the steps along each axis (rows) in a space, to RAS."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag(to_ras) @ directions.T
    affine[:3, 3] = np.array(to_ras) * origin
    return affine


def _other_voxels(got: str) -> UnsupportedVolume:
    return UnsupportedVolume(
        "voxels are not plain numbers",
        expected="8 to 64 bit integers or floats, raw or deflated",
        got=got,
        remedy="save it again from 3D Slicer or ITK, or as NIfTI",
    )


def _info(
    path: Path,
    sizes: list[int],
    affine: NDArray[np.float64],
    coding: tuple[str, bool],
    stored: tuple[Packing, str | None, int],
) -> ItkInfo:
    if len(sizes) != 3:
        raise UnsupportedVolume(
            f"volume has {len(sizes)} axes",
            expected="3",
            got="×".join(map(str, sizes)),
            remedy="store each 3D volume in a file of its own",
        )
    packing, data, offset = stored
    dtype, big = coding
    info = NiftiInfo(
        VolumeGeometry.from_array(tuple(sizes), affine),
        VoxelCoding(np.dtype((">" if big else "<") + dtype)),
        0 if data else offset,
        compressed=packing != "raw",
    )
    return ItkInfo(info, path if data is None else _beside(path, data), packing)


def _beside(path: Path, data: str) -> Path:
    """The file of voxels that a header names: in its own folder, nowhere else."""
    if (
        "/" in data
        or "\\" in data
        or data.startswith(".")
        or data.split()[0] == "LIST"
        or "%" in data
    ):
        raise UnsupportedVolume(
            "voxels lie in another folder or in several files",
            expected="one file beside the header",
            remedy="save it as one file: .nrrd, .mha or .nii.gz",
        )
    return path.with_name(data)


def unpacked(file: BufferedReader, packing: Packing) -> Readable:
    """The voxels of an open file from where it stands, packed by other means than gzip."""
    return bz2.BZ2File(file) if packing == "bzip2" else _Inflated(file)


class _Inflated:
    """A zlib stream."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._zlib = zlib.decompressobj()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fills some of `buffer`; 0 at the end.

        Raises:
            EOFError, zlib.error: a stream that is cut off or damaged.
        """
        while not self._zlib.eof:
            packed = self._zlib.unconsumed_tail or self._file.read(1 << 16)
            if not packed:
                raise EOFError
            if found := self._zlib.decompress(packed, len(buffer)):
                buffer[: len(found)] = found
                return len(found)
        return 0


def read_segments(path: Path) -> list[tuple[str, int]]:
    """Name and label value of every segment that 3D Slicer wrote into a ``.seg.nrrd``.

    Raises:
        NotFound: as `open_regular`.
        CorruptFile: no readable header.
        UnsupportedVolume: it names no segments.
    """
    with open_regular(path) as file:
        text, _ = _until(file.read(MAX_HEADER_BYTES), rb"\r?\n\r?\n")
    try:
        header: Mapping[str, Any] = nrrd.read_header(text.decode("utf-8", "replace").splitlines())
        found = {
            int(match[1]): (str(name), int(header[f"Segment{match[1]}_LabelValue"]))
            for key, name in header.items()
            if (match := re.fullmatch(r"Segment(\d+)_Name", key))
        }
    except Exception as error:  # pynrrd raises what it likes on damaged headers
        raise CorruptFile(
            "header of segments is malformed",
            got=type(error).__name__,
            remedy="save it from 3D Slicer's Segment Editor again",
        ) from None
    if not found:
        raise UnsupportedVolume(
            "names no segments", expected="Segment0_Name and Segment0_LabelValue",
            remedy="save it from 3D Slicer's Segment Editor, or pass --preset",
        )  # fmt: skip
    return [found[number] for number in sorted(found)]
