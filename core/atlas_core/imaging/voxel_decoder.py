"""Decoding of voxels from a stream of bytes, checked against the header's claims piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from atlas_core.errors import CorruptFile, UnsupportedVolume

MAX_TRAILING_BYTES = 4096
"""Some writers pad to a block; more bytes than this after the voxels contradict the header."""

PIECE_VOXELS = 1 << 20
"""Voxels decoded in one go: a few MiB, which stay in the processor's cache."""


@dataclass(frozen=True)
class VoxelCoding:
    """How stored numbers become values: ``value = stored · slope + intercept``."""

    dtype: np.dtype[Any]
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def whole(self) -> bool:
        """Stored whole numbers stay whole numbers."""
        # Beyond 32 bits no product fits, and Python's integers would not fit NumPy's.
        whole_scale = all(
            float(number).is_integer() and abs(number) < 1 << 31
            for number in (self.slope, self.intercept)
        )
        return self.dtype.kind in "iu" and whole_scale


class Readable(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...


class ByteStream:
    """The decompressed bytes of a file, with one kind of error."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream

    def fill(self, view: memoryview) -> int:
        """Read until `view` is full or the bytes end; returns the number read.

        Raises:
            CorruptFile: the gzip stream is damaged or cut off.
        """
        came = 0
        try:
            while came < len(view):
                count = self._stream.readinto(view[came:])
                if not count:
                    break
                came += count
        except EOFError:
            raise cut_off() from None
        # isal's type stub declares IsalError as an instance of Exception.
        except (OSError, zlib.error, IsalError) as error:  # type: ignore[misc]
            raise CorruptFile(
                "file is damaged", got=str(error) or None, remedy="copy the file again"
            ) from None
        return came

    def take(self, count: int) -> bytes:
        """The next `count` bytes, or fewer at the end."""
        buffer = bytearray(count)
        return bytes(buffer[: self.fill(memoryview(buffer))])


def cut_off(expected: object = None, got: object = None) -> CorruptFile:
    return CorruptFile(
        "file ends too early: it is truncated",
        expected=expected,
        got=got,
        remedy="copy or download the file again",
    )


def stored_pieces(
    data: ByteStream, coding: VoxelCoding, voxels: int, piece_voxels: int
) -> Iterator[NDArray[Any]]:
    """The stored numbers in file order, as one-dimensional native pieces; the buffer is reused.

    Raises:
        CorruptFile: fewer bytes than `voxels` need, or more than `MAX_TRAILING_BYTES` behind them.
    """
    piece = np.empty(min(piece_voxels, voxels), coding.dtype.newbyteorder("="))
    for start in range(0, voxels, piece_voxels):
        part = piece[: min(piece_voxels, voxels - start)]
        came = data.fill(part.view(np.uint8).data)
        if came < part.nbytes:
            itemsize = part.dtype.itemsize
            raise cut_off(f"{voxels * itemsize} bytes of voxels", start * itemsize + came)
        if not coding.dtype.isnative:
            part.byteswap(inplace=True)
        yield part
    # Reading on reaches the gzip checksum, which is the only proof that the voxels are right.
    if len(data.take(MAX_TRAILING_BYTES + 1)) > MAX_TRAILING_BYTES:
        raise CorruptFile(
            "file holds more voxels than its header claims",
            expected=f"{voxels} voxels",
            remedy="mend the header, or convert again from the source",
        )


class VoxelDecoder:
    """Decodes stored numbers; keeps their range and counts values that are not finite."""

    def __init__(self, coding: VoxelCoding) -> None:
        self._coding = coding
        self._not_finite = 0
        self.low, self.high = 0, 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type that `decode` yields."""
        coding = self._coding
        if not coding.whole:
            return np.dtype(np.float32)
        if coding.scaled or coding.dtype.str[1:] in ("u4", "i8", "u8"):
            return np.dtype(np.int32)
        return coding.dtype.newbyteorder("=")

    @property
    def _as_stored(self) -> bool:
        """The stored numbers are the values."""
        return self.dtype == self._coding.dtype.newbyteorder("=") and not self._coding.scaled

    def decode(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Values of `stored`, of any shape.

        Raises:
            UnsupportedVolume: whole numbers that 32 bits do not hold.
        """
        coding = self._coding
        if self._as_stored:
            values = stored
        elif coding.whole:
            values = self._whole(stored)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                scaled = stored.astype(np.float64) * coding.slope + coding.intercept
                values = scaled.astype(np.float32)
        if values.dtype.kind == "f":
            self._not_finite += values.size - int(np.count_nonzero(np.isfinite(values)))
        return values

    def inspect(self, stored: NDArray[Any]) -> None:
        """Check one-dimensional `stored` for what `decode` would refuse, in little memory."""
        if self._as_stored and self.dtype.kind != "f":
            return
        for start in range(0, stored.size, PIECE_VOXELS):
            self.decode(stored[start : start + PIECE_VOXELS])

    def _whole(self, stored: NDArray[Any]) -> NDArray[np.int32]:
        slope, intercept = int(self._coding.slope), int(self._coding.intercept)
        ends = [int(v) * slope + intercept for v in (stored.min(), stored.max())]
        self.low, self.high = min(self.low, *ends), max(self.high, *ends)
        bounds = np.iinfo(np.int32)
        if self.low < bounds.min or self.high > bounds.max:
            raise UnsupportedVolume(
                "voxel values do not fit 32 bits",
                got=f"{self.low}..{self.high}",
                remedy="store them as numbers of 32 bits",
            )
        return np.asarray(stored.astype(np.int64) * slope + intercept, dtype=np.int32)

    def require_finite(self, voxels: int) -> None:
        """Raises:
        UnsupportedVolume: NaN or infinite values were decoded.
        """
        if self._not_finite:
            raise UnsupportedVolume(
                f"{self._not_finite} of {voxels} voxels are NaN or infinite",
                remedy="replace them by air (-1024 HU) in a CT or by 0 in a label",
            )
