"""Where the sliding windows lie on the models' grid, and how much each of them weighs at a voxel.

Windows cover a box, usually that of the body, in even steps from edge to edge, as nnU-Net places
them: the fewest that keep the requested overlap, of which `SLACK_SHARE` may be missing. If the box
is shorter than the patch, there is one window, centred; if the grid itself is shorter, the window
extends over the edge into air. The windows are all combinations of the starts per axis, and the
Gaussian importance is a product over the axes; so its normalised share is a product too, and one
small table per axis describes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from atlas_core.errors import InvalidInput
from numpy.typing import NDArray

Range = tuple[int, int]


Box = tuple[Range, Range, Range]
"""Voxels ``[start, stop)`` along z, y, x."""


DEFAULT_OVERLAP = 0.5
"""Of neighbouring windows: that of nnU-Net; the 0.75 of the published script predicts every voxel
64 times."""


Zyx = tuple[int, int, int]

SIGMA_SHARE = 0.125
"""Standard deviation of the Gaussian importance as a share of the patch: MONAI's and nnU-Net's."""

MAX_OVERLAP = 0.75
"""Of neighbouring windows, as a share of the patch. Up to here every voxel has a window whose
quantised weight is above zero (see `blending`); beyond it 64 predictions per voxel become 125."""

SLACK_SHARE = 1 / 32
"""How much of the requested overlap may be missing, as a share of the patch, if that saves a
window: otherwise a box one voxel longer than its windows reach would cost a whole layer of them."""

AIR_HU = -1024.0
"""Hounsfield units beyond the volume: the lower end of the scale, air."""


@dataclass(frozen=True)
class Window:
    """One window: its place in the plan and on the grid.

    Attributes:
        at: index among the starts of each axis (z, y, x).
        start: first voxel on the grid (z, y, x); negative if the window extends over the edge.
    """

    at: Zyx
    start: Zyx


@dataclass(frozen=True)
class WindowPlan:
    """All windows of one volume, in rows of rising z.

    Attributes:
        grid: voxels of the model's grid (z, y, x).
        patch: voxels of a window (z, y, x).
        starts: first voxels of the windows along z, y, x, rising.
    """

    grid: Zyx
    patch: Zyx
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @classmethod
    def over(cls, grid: Zyx, patch: Zyx, overlap: float, box: Box | None = None) -> WindowPlan:
        """The plan for a volume.

        Args:
            grid, patch: voxels (z, y, x).
            overlap: share of the patch that neighbouring windows have in common, per axis.
            box: what the windows must cover; None: the whole grid.

        Raises:
            InvalidInput: an overlap outside 0..`MAX_OVERLAP`.
        """
        _require_overlap(overlap)
        whole = tuple((0, n) for n in grid)
        z, y, x = (
            _starts(n, p, overlap, *part)
            for n, p, part in zip(grid, patch, box or whole, strict=True)
        )
        return cls(grid, patch, (z, y, x))

    @classmethod
    def as_nnunet(cls, grid: Zyx, patch: Zyx, overlap: float) -> WindowPlan:
        """The windows of nnU-Net's own predictor: over the whole grid, none spared, and every start
        rounded to the nearest voxel.

        A network's answer hangs on where its windows lie, so labels are nnU-Net's only with these.
        See `over`.
        """
        _require_overlap(overlap)
        z, y, x = (_nnunet_starts(n, p, overlap) for n, p in zip(grid, patch, strict=True))
        return cls(grid, patch, (z, y, x))

    def __len__(self) -> int:
        """Number of windows."""
        z, y, x = self.starts
        return len(z) * len(y) * len(x)

    @property
    def rows(self) -> int:
        """Number of z-rows; the windows of a row have the same start along z."""
        return len(self.starts[0])

    def row(self, k: int) -> Iterator[Window]:
        """The windows of z-row `k`."""
        for j, y in enumerate(self.starts[1]):
            for i, x in enumerate(self.starts[2]):
                yield Window((k, j, i), (self.starts[0][k], y, x))

    def z_range(self, k: int) -> tuple[int, int]:
        """The slices ``[start, stop)`` of the grid that the windows of row `k` cover."""
        start = self.starts[0][k]
        return max(0, start), min(self.grid[0], start + self.patch[0])

    def settled(self, k: int) -> int:
        """No window after row `k` touches slices below this one.

        Before the first row (`k` = −1) these are the slices below all windows; after the last one
        (`k` = `rows`) those above all windows too.
        """
        if k + 1 < self.rows:
            return max(0, self.starts[0][k + 1])
        return self.z_range(k)[1] if k < self.rows else self.grid[0]

    @cached_property
    def shares(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Per axis (z, y, x) ``[window, voxel of the patch]``: the window's share.

        For each voxel of the grid the shares of the windows that cover it add up to 1 along each
        axis. Voxels beyond the grid have share 0, as have voxels that no window covers.
        """
        z, y, x = (
            _shares(n, p, s) for n, p, s in zip(self.grid, self.patch, self.starts, strict=True)
        )
        return z, y, x


def _require_overlap(overlap: float) -> None:
    if not 0.0 <= overlap <= MAX_OVERLAP:
        raise InvalidInput(
            "overlap of sliding windows is out of range",
            expected=f"0..{MAX_OVERLAP}",
            got=overlap,
        )


def _starts(voxels: int, patch: int, overlap: float, first: int, last: int) -> tuple[int, ...]:
    """Windows along one axis of `voxels` that cover ``[first, last)``."""
    if voxels <= patch:
        return (-((patch - voxels) // 2),)
    spare = last - first - patch
    if spare <= 0:
        return (min(max(0, first + spare // 2), voxels - patch),)
    step = max(1, int(patch * (1.0 - overlap)))
    steps = math.ceil(spare / min(patch, step + int(patch * SLACK_SHARE)))
    return tuple(first + spare * i // steps for i in range(steps + 1))


def _nnunet_starts(voxels: int, patch: int, overlap: float) -> tuple[int, ...]:
    """Windows along one axis, as `compute_steps_for_sliding_window` of nnU-Net 2 lays them."""
    spare = voxels - patch
    if spare <= 0:
        return (-((patch - voxels) // 2),)
    steps = math.ceil(spare / (patch * (1.0 - overlap)))
    return tuple(round(spare / steps * i) for i in range(steps + 1))


def _shares(voxels: int, patch: int, starts: tuple[int, ...]) -> NDArray[np.float64]:
    offset = (np.arange(patch) - (patch - 1) / 2) / (SIGMA_SHARE * patch)
    importance = np.exp(-0.5 * offset**2)
    index = np.array(starts)[:, None] + np.arange(patch)
    inside = (index >= 0) & (index < voxels)
    total = np.zeros(voxels)
    np.add.at(total, index[inside], np.broadcast_to(importance, index.shape)[inside])
    return np.where(inside, importance / total[np.clip(index, 0, voxels - 1)], 0.0)
