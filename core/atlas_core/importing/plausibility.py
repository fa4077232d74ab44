"""Whether voxel values are those of a CT, for formats that do not record the modality."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from atlas_core.imaging import ValueRange

AIR_HU: Final = -200
"""Below this there is only air, lung and padding; fat begins at about −150."""

MIN_AIR: Final = 0.001
"""Share of a CT's voxels below `AIR_HU`, at least: a CT shows the air around and inside the body.
Real CTs of chest and abdomen have 37-76 %. An MR has none, as its values begin at 0 or a little
below; nor has a CT that lost its offset of −1024 in a conversion."""

MAX_LABEL_VALUES: Final = 128
"""Whole numbers from 0 to 255, at most so many distinct ones: a label map (TotalSegmentator has
118). An image of so few grey values is not a CT either."""


class VoxelSurvey(ValueRange):
    """What the values of a volume, which come in pieces, say about it.

    Attributes:
        voxels: how many.
        air: how many of them lie below `AIR_HU`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.voxels = 0
        self.air = 0
        self._bytes_seen = np.zeros(256, np.bool_)

    def add(self, piece: NDArray[Any]) -> None:
        """Look at one-dimensional, non-empty `piece`."""
        super().add(piece)
        self.voxels += piece.size
        self.air += int(np.count_nonzero(piece < AIR_HU))
        if self.fits(np.uint8):
            self._bytes_seen[piece.astype(np.uint8)] = True

    def looks_like_labels(self) -> bool:
        """Whether the values are those of a label: few distinct whole numbers from 0 to 255."""
        return self.fits(np.uint8) and int(self._bytes_seen.sum()) <= MAX_LABEL_VALUES

    def hounsfield_doubt(self) -> str | None:
        """Why the values are not plausible Hounsfield units; None if they are."""
        if self.air == self.voxels:
            return f"every voxel lies below {AIR_HU}"
        if self.air < MIN_AIR * self.voxels:
            share, lowest = 100 * self.air / self.voxels, f"the lowest value is {self.low:g}"
            return f"a CT has air, but {share:.2g} % lie below {AIR_HU}, {lowest}"
        return None
