"""One mask of both kidneys, which comes in pieces, split into left and right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atlas_core.errors import LimitExceeded
from atlas_core.geometry import Shape3, VolumeGeometry
from atlas_core.imaging.label_maps import split_left_right

MaskPieces = Callable[[], Iterator[NDArray[np.bool_]]]
"""Reads a mask: one-dimensional pieces in file order (``i`` fastest) of its CT's grid."""

MAX_BOX_VOXELS: Final = 1 << 27
"""Box around both kidneys, at most: 400×200×400 mm in voxels of 0.7×0.7×0.5 mm. It is whole in
memory, as only then connected pieces are known."""


@dataclass(frozen=True)
class _Box:
    """The smallest box that holds a mask: indices [low, high) along i, j, k."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]


def split_kidneys(
    mask: MaskPieces, geometry: VolumeGeometry, *, midline_mm: float
) -> tuple[MaskPieces, MaskPieces]:
    """Masks of the left and the right kidney; see `split_left_right`.

    Raises:
        LimitExceeded: the box around the kidneys is too large, or they are in too many pieces.
    """
    box = _box(mask, geometry.shape)
    if box is None:
        return mask, mask
    shape = tuple((box.high - box.low).tolist())
    if np.prod(shape) > MAX_BOX_VOXELS:
        raise LimitExceeded(
            "kidneys lie too far apart to be told left from right",
            expected=f"a box of at most {MAX_BOX_VOXELS} voxels around them",
            got="×".join(map(str, shape)),
            remedy="remove stray voxels, or give each kidney a value or mask of its own",
        )
    inside = np.zeros(shape, np.bool_)
    for _, index in _voxels(mask, geometry.shape):
        inside[tuple(index - box.low[:, None])] = True
    affine = geometry.matrix.copy()
    affine[:3, 3] += affine[:3, :3] @ box.low
    part = VolumeGeometry.from_array(shape, affine)
    left, right = split_left_right(inside, part, midline_mm=midline_mm)
    return _only(mask, geometry.shape, box, left), _only(mask, geometry.shape, box, right)


def _voxels(
    mask: MaskPieces, shape: Shape3
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
    """Pieces of the mask, each with the indices ``[3, voxel]`` of its voxels."""
    start = 0
    for piece in mask():
        index = np.unravel_index(start + np.flatnonzero(piece), shape, order="F")
        yield piece, np.stack(index)
        start += piece.size


def _box(mask: MaskPieces, shape: Shape3) -> _Box | None:
    """None for an empty mask."""
    low, high = np.array(shape), np.zeros(3, np.int64)
    for _, index in _voxels(mask, shape):
        if index.size:
            low, high = np.minimum(low, index.min(1)), np.maximum(high, index.max(1) + 1)
    return _Box(low, high) if high.all() else None


def _only(mask: MaskPieces, shape: Shape3, box: _Box, side: NDArray[np.bool_]) -> MaskPieces:
    """The voxels of `mask` that are in `side`, a mask of the box."""

    def pieces() -> Iterator[NDArray[np.bool_]]:
        for piece, index in _voxels(mask, shape):
            piece[piece] = side[tuple(index - box.low[:, None])]
            yield piece

    return pieces
