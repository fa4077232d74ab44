"""A volume in memory: voxels with their geometry, and a hash of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_core.errors import GridMismatch
from atlas_core.geometry import VolumeGeometry

HASHED_VOXELS = 1 << 20
"""Voxels processed at a time: a few MiB, so that hashing needs no second copy of the volume."""


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
    digest = hashlib.sha256()
    digest.update(np.array(volume.geometry.shape, dtype="<i8").tobytes())
    # + 0.0 turns -0.0 into 0.0: the same place must not hash differently.
    digest.update((volume.geometry.matrix[:3].astype("<f4") + np.float32(0.0)).tobytes())
    dtype = _narrowest_dtype(volume.voxels)
    digest.update(dtype.str.encode())
    for piece in _pieces(volume.voxels):
        digest.update(piece.astype(dtype, copy=False).tobytes())
    return digest.hexdigest()


def _pieces(voxels: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """All voxels in Fortran order, as one-dimensional pieces of bounded size."""
    slices = max(1, HASHED_VOXELS // max(1, voxels[..., 0].size))
    for start in range(0, voxels.shape[2], slices):
        yield voxels[..., start : start + slices].ravel(order="F")


def _narrowest_dtype(voxels: NDArray[Any]) -> np.dtype[Any]:
    """The first of int16, int32 and float32 that holds every voxel (wider ones are rounded)."""
    low, high = 0, 0
    for piece in _pieces(voxels):
        if piece.dtype.kind == "f" and not (np.isfinite(piece) & (piece == np.rint(piece))).all():
            return np.dtype("<f4")
        low, high = min(low, int(piece.min())), max(high, int(piece.max()))
    for name in ("<i2", "<i4"):
        bounds = np.iinfo(name)
        if bounds.min <= low and high <= bounds.max:
            return np.dtype(name)
    return np.dtype("<f4")


def distinct_values(voxels: NDArray[Any]) -> tuple[int, ...]:
    """The distinct values of whole-numbered voxels ``[i, j, k]``, rising."""
    found: set[int] = set()
    for piece in _pieces(voxels):
        low, high = int(piece.min()), int(piece.max())
        if low == high:
            found.add(low)
        elif high - low < 1 << 16 and low >= -(1 << 31) and high < 1 << 31:
            # Counting beats sorting as long as the table stays small beside the piece.
            counts = np.bincount(piece.astype(np.int64) - low)
            found.update((np.flatnonzero(counts) + low).tolist())
        else:
            found.update(int(value) for value in np.unique(piece))
    return tuple(sorted(found))
