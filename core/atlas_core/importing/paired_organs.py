"""One mask of both kidneys, or of another pair of organs, in pieces: split into left and right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atlas_core.geometry import Shape3, VolumeGeometry
from atlas_core.imaging.label_maps import split_left_right

MaskPieces = Callable[[], Iterator[NDArray[np.bool_]]]
"""Reads a mask: one-dimensional pieces in file order (``i`` fastest) of its CT's grid."""

MAX_BLOCKS: Final = 1 << 24
"""Blocks in the box around both organs, at most: 350×190×250 mm of 1 mm. They are in memory at
once, as only then connected pieces are known."""


@dataclass(frozen=True)
class _Blocks:
    """The box around a mask, divided into blocks of voxels that go to one side together.

    Attributes:
        corner: index of its first voxel.
        edge: voxels along each edge of a block; 1 in all but the finest scans.
        shape: number of blocks.
    """

    corner: NDArray[np.int64]
    edge: int
    shape: Shape3

    def of(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Blocks of voxels ``[3, voxel]``."""
        return tuple((index - self.corner[:, None]) // self.edge)

    def geometry(self, grid: VolumeGeometry) -> VolumeGeometry:
        """Where the blocks lie; `grid`: of the voxels."""
        affine = grid.matrix @ np.diag([self.edge] * 3 + [1.0])
        affine[:3, 3] += grid.matrix[:3, :3] @ (self.corner + (self.edge - 1) / 2)
        return VolumeGeometry.from_array(self.shape, affine)


def split_sides(
    mask: MaskPieces, geometry: VolumeGeometry, *, midline_mm: float
) -> tuple[MaskPieces, MaskPieces]:
    """Masks of the left and the right organ; see `split_left_right`.

    Raises:
        LimitExceeded: the mask consists of too many pieces to be two organs.
    """
    blocks = _blocks(mask, geometry.shape)
    if blocks is None:
        return mask, mask
    inside = np.zeros(blocks.shape, np.bool_)
    for _, index in _voxels(mask, geometry.shape):
        inside[blocks.of(index)] = True
    sides = split_left_right(inside, blocks.geometry(geometry), midline_mm=midline_mm)
    left, right = (_only(mask, geometry.shape, blocks, side) for side in sides)
    return left, right


def _voxels(
    mask: MaskPieces, shape: Shape3
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
    """Pieces of the mask, each with the indices ``[3, voxel]`` of its voxels."""
    start = 0
    for piece in mask():
        index = np.unravel_index(start + np.flatnonzero(piece), shape, order="F")
        yield piece, np.stack(index)
        start += piece.size


def _blocks(mask: MaskPieces, shape: Shape3) -> _Blocks | None:
    """As fine as memory allows; None for an empty mask."""
    low, high = np.array(shape), np.zeros(3, np.int64)
    for _, index in _voxels(mask, shape):
        if index.size:
            low, high = np.minimum(low, index.min(1)), np.maximum(high, index.max(1) + 1)
    if not high.all():
        return None
    for edge in count(1):
        i, j, k = (-(-(high - low) // edge)).tolist()
        if i * j * k <= MAX_BLOCKS:
            break
    return _Blocks(low, edge, (i, j, k))


def _only(mask: MaskPieces, shape: Shape3, blocks: _Blocks, side: NDArray[np.bool_]) -> MaskPieces:
    """The voxels of `mask` that are in `side`, a mask of the blocks."""

    def pieces() -> Iterator[NDArray[np.bool_]]:
        for piece, index in _voxels(mask, shape):
            piece[piece] = side[blocks.of(index)]
            yield piece

    return pieces
