"""A stack of slices that is no regular grid → one: gantry tilt and uneven gaps are undone.

A voxel is interpolated linearly, in the plane of the two slices around it and between them along
their normal; what is linear in space stays linear. Ends and in-plane grid stay those of the slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FILL_HU: Final = -1024.0
"""Where the straight grid goes beyond what was scanned."""

ROUNDING: Final = 1e-3
"""Share of a step or pixel by which a grid does not grow."""


@dataclass(frozen=True)
class StraightStack:
    """How sheared or unevenly spaced slices come to a regular grid.

    Attributes:
        along: where each slice lies along the normal, in mm from the first, ascending.
        depths: where each slice of the grid lies, likewise.
        moves: (column, row) of each slice's first pixel on the grid, in pixels.
        size: (columns, rows) of the grid.
        first: (column, row) of the grid's first pixel, in pixels of the first slice.
    """

    along: NDArray[np.float64]
    depths: NDArray[np.float64]
    moves: NDArray[np.float64]
    size: tuple[int, int]
    first: tuple[int, int]

    @classmethod
    def of(
        cls,
        along: NDArray[np.float64],
        shifts: NDArray[np.float64],
        size: tuple[int, int],
        step_mm: float,
    ) -> StraightStack:
        """
        Args:
            along: of at least two slices, ascending.
            shifts: (column, row) of each slice against the first, in pixels.
            size: (columns, rows) of a slice.
            step_mm: between slices of the grid, at most; both ends of the stack stay.
        """
        along = along - along[0]
        steps = max(1, int(np.ceil(along[-1] / step_mm - ROUNDING)))
        low = np.floor(shifts.min(axis=0) + ROUNDING).astype(int)
        high = np.ceil(shifts.max(axis=0) - ROUNDING).astype(int)
        columns, rows = (size + high - low).tolist()
        return cls(
            along,
            np.linspace(0.0, along[-1], steps + 1),
            shifts - low,
            (columns, rows),
            (int(low[0]), int(low[1])),
        )

    @property
    def step_mm(self) -> float:
        return float(self.depths[1])

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size, len(self.depths))

    def resampled(
        self, slices: Iterator[NDArray[Any]], dtype: type[np.generic]
    ) -> Iterator[NDArray[Any]]:
        """Slices ``[i, j]`` of the grid in order, of those of the stack; two of them are held."""
        number, below, above = 0, self._moved(0, next(slices)), self._moved(1, next(slices))
        for depth in self.depths:
            while number + 2 < len(self.along) and depth >= self.along[number + 1]:
                number, below, above = (
                    number + 1, above, self._moved(number + 2, next(slices)),
                )  # fmt: skip
            start, end = self.along[number : number + 2]
            share = float(depth - start) / float(end - start)
            if share < ROUNDING or share > 1 - ROUNDING:  # nothing is mixed in that was not scanned
                mixed = below if share < ROUNDING else above
            else:
                mixed = below + np.float32(share) * (above - below)
            filled = np.where(np.isnan(mixed), np.float32(FILL_HU), mixed)
            whole = np.issubdtype(dtype, np.integer)
            yield (np.rint(filled) if whole else filled).astype(dtype)

    def _moved(self, number: int, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """A slice ``[i, j]`` on the grid's pixels; NaN beyond it."""
        moved: NDArray[np.float32] = ndimage.affine_transform(
            pixels.astype(np.float32),
            np.ones(2),
            offset=-self.moves[number],
            output_shape=self.size,
            order=1,
            cval=np.nan,
        )
        return moved
