"""What the mask of an organ looks like beside its CT, measured in one pass, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlas_core.geometry import Float3, VolumeGeometry
from atlas_core.imaging.label_maps import TOUCHING
from atlas_core.importing.plausibility import AIR_HU, LOWEST_AIR_HU

BLOCK_MM: Final = 4.0
"""Pieces are told apart in blocks of about this edge."""

FAR_MM: Final = 40.0
"""Pieces that no chain of smaller gaps joins are not one organ: a fissure, a vessel or thick slices
part one by 20 mm."""


@dataclass(frozen=True)
class OrganFinding:
    """What the mask of one organ, which is not empty, looks like.

    Attributes:
        organ: its name.
        ml: its volume.
        centre_mm: mean position of its voxels, RAS+.
        cut: whether it reaches the lower and the upper border of the scan, along left-right,
            back-front, feet-head.
        air: share of its voxels below `AIR_HU`.
        padding: share of its voxels outside the field of view.
        far_ml: volume of its pieces that lie further than `FAR_MM` from the largest group of pieces
            and do not reach the border of the scan.
        at_ends: area in the first and last slice towards feet and head, as a share of its largest
            area in a slice.
        slender: its extent along feet-head by the edge of a square of its largest area: 1 to 3 for
            solid organs, more for vessels, spine and muscles, which every scan cuts.
    """

    organ: str
    ml: float
    centre_mm: Float3
    cut: tuple[tuple[bool, bool], ...]
    air: float
    padding: float
    far_ml: float
    at_ends: tuple[float, float] = (0.0, 0.0)
    slender: float = 1.0


class OrganSurvey:
    """Collects what the pieces of one mask say. Memory is bounded by the blocks it touches."""

    def __init__(self, organ: str, grid: VolumeGeometry) -> None:
        self._organ = organ
        self._grid = grid
        self._edges = [max(1, round(BLOCK_MM / spacing)) for spacing in grid.spacing_mm]
        self._blocks = tuple(-(-n // edge) for n, edge in zip(grid.shape, self._edges, strict=True))
        self._voxels = self._air = self._padding = 0
        self._sum = np.zeros(3)
        self._low = np.array(grid.shape)
        self._high = np.full(3, -1)
        self._upright = grid.axis_map.source[2]  # the axis along feet-head
        self._areas = np.zeros(grid.shape[self._upright], np.int64)
        self._found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, index: NDArray[np.int64], hu: NDArray[Any]) -> None:
        """Voxels of the mask.

        Args:
            index: in file order (``i`` fastest), rising, counted from the first voxel of the scan.
            hu: the CT's values there.
        """
        if not index.size:
            return
        at = np.stack(np.unravel_index(index, self._grid.shape, order="F"))
        self._voxels += index.size
        self._air += int(np.count_nonzero(hu < AIR_HU))
        self._padding += int(np.count_nonzero(hu < LOWEST_AIR_HU))
        self._sum += at.sum(1)
        self._low = np.minimum(self._low, at.min(1))
        self._high = np.maximum(self._high, at.max(1))
        self._areas += np.bincount(at[self._upright], minlength=self._areas.size)
        blocks = np.ravel_multi_index(
            tuple(at // np.array(self._edges)[:, None]), self._blocks, order="F"
        )
        first = int(blocks.min())
        counts = np.bincount(blocks - first)
        touched = np.flatnonzero(counts)
        self._found.append((touched + first, counts[touched]))

    def finding(self) -> OrganFinding | None:
        """What was found; None for an empty mask."""
        if not self._voxels:
            return None
        x, y, z = (self._grid.matrix @ [*(self._sum / self._voxels), 1])[:3].tolist()
        low, high = self._low == 0, self._high == np.array(self._grid.shape) - 1
        axes = self._grid.axis_map
        cut = tuple(
            (bool(high[axis]), bool(low[axis])) if back else (bool(low[axis]), bool(high[axis]))
            for axis, back in zip(axes.source, axes.flip, strict=True)
        )
        return OrganFinding(
            organ=self._organ,
            ml=self._voxels * self._grid.voxel_ml,
            centre_mm=(x, y, z),
            cut=cut,
            air=self._air / self._voxels,
            padding=self._padding / self._voxels,
            far_ml=self._far_voxels() * self._grid.voxel_ml,
            at_ends=self._at_ends(),
            slender=self._slender(),
        )

    def _at_ends(self) -> tuple[float, float]:
        areas = self._areas[:: -1 if self._grid.axis_map.flip[2] else 1] / self._areas.max()
        return float(areas[0]), float(areas[-1])

    def _slender(self) -> float:
        spacing_mm = self._grid.spacing_mm[self._upright]
        extent_mm = (self._high - self._low + 1)[self._upright] * spacing_mm
        area_mm2 = self._areas.max() * self._grid.voxel_ml * 1000 / spacing_mm
        return float(extent_mm / np.sqrt(area_mm2))

    def _far_voxels(self) -> int:
        """Voxels of pieces that lie far from the rest."""
        blocks = np.concatenate([found for found, _ in self._found])
        counts = np.concatenate([count for _, count in self._found])
        at = np.stack(np.unravel_index(blocks, self._blocks, order="F"))
        corner = at.min(1)
        size = at.max(1) - corner + 1
        voxels = np.zeros(size, np.int64)
        np.add.at(voxels, tuple(at - corner[:, None]), counts)
        edges_mm = [e * mm for e, mm in zip(self._edges, self._grid.spacing_mm, strict=True)]
        near = ndimage.distance_transform_edt(voxels == 0, edges_mm) <= FAR_MM / 2
        groups, number = ndimage.label(near, TOUCHING)
        if number == 1:
            return 0
        groups[voxels == 0] = 0
        sizes = np.bincount(groups.ravel(), voxels.ravel(), number + 1)
        boxes = ndimage.find_objects(groups)
        return sum(
            int(sizes[group])
            for group in range(1, number + 1)
            if group != sizes.argmax() and not self._reaches_border(boxes[group - 1], corner)
        )

    def _reaches_border(self, box: tuple[slice, ...], corner: NDArray[np.int64]) -> bool:
        """Whether pieces may go on outside the scan, where they may be joined with the rest."""
        return any(
            corner[axis] + part.start == 0 or corner[axis] + part.stop == self._blocks[axis]
            for axis, part in enumerate(box)
        )
