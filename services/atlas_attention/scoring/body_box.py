"""Where in a CT the body lies, so that windows are laid over the body and not over the air, the
table and the padding around it.

The CT is looked at in a coarse raster of single voxels. What is brighter than air and hangs
together with the bulk of it is body; a table that does not touch the patient is not. The box is
what matters: lungs and bowel gas lie inside it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from atlas_core.geometry import VolumeGeometry
from numpy.typing import NDArray
from scipy import ndimage

from atlas_attention.fusion import Box, Range

RASTER_MM = 6.0
"""Distance of the voxels that are looked at: thinner than any part of a body that holds an
organ."""

LEAST_SHARE = 0.25
"""Of the largest part: smaller ones are table, cables and noise, larger ones a second leg."""


class CanonicalSlices(Protocol):
    """A CT whose slices can be read in any order."""

    @property
    def canonical(self) -> VolumeGeometry:
        """The grid, its axes turned to RAS+."""

    def read(self, start: int, stop: int, /) -> NDArray[np.float32]:
        """Canonical slices ``[start, stop)`` along z: HU ``[z, y, x]``."""


def body_box(ct: CanonicalSlices, above_hu: float) -> Box | None:
    """The box around the body, in voxels of the canonical grid; None where all is air.

    Holds one slice at a time, and a bit per voxel of the raster.

    Args:
        ct: Hounsfield units.
        above_hu: what is brighter may be body.
    """
    steps = [max(1, round(RASTER_MM / mm)) for mm in ct.canonical.spacing_mm[::-1]]
    slices = range(0, ct.canonical.shape[2], steps[0])
    raster = np.stack([ct.read(z, z + 1)[0, :: steps[1], :: steps[2]] > above_hu for z in slices])
    parts, count = ndimage.label(raster, np.ones((3, 3, 3)))
    if not count:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    large = np.flatnonzero(sizes >= LEAST_SHARE * sizes.max()) + 1
    found = ndimage.find_objects(parts)
    z, y, x = (
        _between(
            min(found[part - 1][axis].start for part in large),
            max(found[part - 1][axis].stop for part in large),
            steps[axis],
            ct.canonical.shape[2 - axis],
        )
        for axis in range(3)
    )
    return z, y, x


def _between(start: int, stop: int, step: int, voxels: int) -> Range:
    """Raster points ``[start, stop)`` as voxels: out to the next points, which are not body."""
    return max(0, (start - 1) * step + 1), min(voxels, stop * step)


def on_grid(box: Box, native: tuple[int, int, int], grid: tuple[int, int, int]) -> Box:
    """The smallest box on another grid of the same extent that holds `box`.

    Args:
        native, grid: voxels (z, y, x) of the box's grid and of the other one.
    """
    z, y, x = (
        (start * new // old, -(-stop * new // old))
        for (start, stop), old, new in zip(box, native, grid, strict=True)
    )
    return z, y, x
