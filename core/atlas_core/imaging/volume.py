"""A volume in memory: voxels with their geometry, and a hash of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from atlas_core.errors import GridMismatch, UnsupportedVolume
from atlas_core.geometry import VolumeGeometry

HASHED_VOXELS = 1 << 20
"""Voxels processed at a time: a few MiB, so that hashing needs no second copy of the volume."""

MAX_DISTINCT = 1 << 16
"""Distinct values of a label, at most: ids of instances come to thousands, noise to millions."""


@dataclass(frozen=True)
class Volume:
    """Voxels ``[i, j, k]`` in the file's own axis order, and where they lie.

    Attributes:
        voxels: Hounsfield units or label values; Fortran order (``i`` runs fastest) when read from
            a file.
        geometry: grid of the same shape.

    Raises:
        GridMismatch: `voxels` has another shape than `geometry`.
    """

    voxels: NDArray[Any]
    geometry: VolumeGeometry

    def __post_init__(self) -> None:
        if self.voxels.shape != self.geometry.shape:
            raise GridMismatch(
                "voxels and geometry have different shapes",
                expected=self.geometry.shape,
                got=self.voxels.shape,
            )


def content_sha256(volume: Volume) -> str:
    """SHA-256 over geometry and voxel values: equal content gives an equal hash.

    Neither compression, header text, byte order nor the stored data type matter: a CT saved as
    int16, as int32 or as whole-numbered float32 hashes the same. The affine counts with the
    precision of a NIfTI file (float32); axis order and flips do count, because masks lie on the
    file's own grid.
    """
    values = ValueRange()
    for piece in _pieces(volume.voxels):
        values.add(piece)
    return content_sha256_of(volume.geometry, values.narrowest, _pieces(volume.voxels))


def content_sha256_of(
    geometry: VolumeGeometry, narrowest: np.dtype[Any], pieces: Iterable[NDArray[Any]]
) -> str:
    """`content_sha256` of a volume that comes in pieces.

    Args:
        geometry: its grid.
        narrowest: `ValueRange.narrowest` of all its values.
        pieces: its values in Fortran order, one-dimensional.
    """
    digest = hashlib.sha256()
    digest.update(np.array(geometry.shape, dtype="<i8").tobytes())
    # + 0.0 turns -0.0 into 0.0: the same place must not hash differently.
    digest.update((geometry.matrix[:3].astype("<f4") + np.float32(0.0)).tobytes())
    digest.update(narrowest.str.encode())
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece, narrowest).data)
    return digest.hexdigest()


class ValueRange:
    """The range of values that come in pieces, and whether all are whole numbers.

    Attributes:
        low, high: the smallest and the largest value.
        whole: no value has a fraction, and all are finite.
    """

    def __init__(self) -> None:
        self.low: float = np.inf
        self.high: float = -np.inf
        self.whole = True

    def add(self, piece: NDArray[Any]) -> None:
        """Look at one-dimensional, non-empty `piece`."""
        if piece.dtype.kind == "f" and self.whole:
            self.whole = bool((np.isfinite(piece) & (piece == np.rint(piece))).all())
        self.low, self.high = min(self.low, piece.min().item()), max(self.high, piece.max().item())

    def fits(self, dtype: DTypeLike) -> bool:
        """Whether all values are whole numbers that `dtype` holds."""
        bounds = np.iinfo(np.dtype(dtype))
        return self.whole and bounds.min <= self.low and self.high <= bounds.max

    @property
    def narrowest(self) -> np.dtype[Any]:
        """The first of int16, int32 and float32 that holds every value (wider ones are rounded)."""
        return np.dtype(next((name for name in ("<i2", "<i4") if self.fits(name)), "<f4"))


def _pieces(voxels: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """All voxels in Fortran order, as one-dimensional pieces of bounded size."""
    slices = max(1, HASHED_VOXELS // max(1, voxels[..., 0].size))
    for start in range(0, voxels.shape[2], slices):
        yield voxels[..., start : start + slices].ravel(order="F")


class DistinctValues:
    """The distinct values of whole numbers that come in pieces."""

    def __init__(self) -> None:
        self._found: set[int] = set()

    def add(self, piece: NDArray[Any]) -> None:
        """Look at one-dimensional, non-empty `piece`.

        Raises:
            UnsupportedVolume: more than `MAX_DISTINCT` values.
        """
        low, high = int(piece.min()), int(piece.max())
        if low == high:
            self._found.add(low)
        elif high - low < 1 << 16 and low >= -(1 << 31) and high < 1 << 31:
            # Counting beats sorting as long as the table stays small beside the piece.
            counts = np.bincount(piece.astype(np.int64) - low)
            self._found.update((np.flatnonzero(counts) + low).tolist())
        else:
            self._found.update(int(value) for value in np.unique(piece))
        if len(self._found) > MAX_DISTINCT:
            raise UnsupportedVolume(
                "too many distinct values for a label",
                expected=f"at most {MAX_DISTINCT}",
                remedy="a label has a few whole numbers: is this a CT?",
            )

    @property
    def values(self) -> tuple[int, ...]:
        """Those found so far, rising."""
        return tuple(sorted(self._found))


def distinct_values(voxels: NDArray[Any]) -> tuple[int, ...]:
    """The distinct values of whole-numbered voxels ``[i, j, k]``, rising.

    Raises:
        UnsupportedVolume: more than `MAX_DISTINCT` values.
    """
    distinct = DistinctValues()
    for piece in _pieces(voxels):
        distinct.add(piece)
    return distinct.values
