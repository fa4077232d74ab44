"""Where in a CT the body lies, so that windows cover the body and not the air, the table and the
padding around it.

The CT is sampled in a coarse raster of single voxels. Large connected components of samples that
are brighter than air are body; a table that does not touch the patient is not. Only the bounding
box matters: lungs and bowel gas lie inside it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from atlas_core.geometry import VolumeGeometry
from numpy.typing import NDArray
from scipy import ndimage

from atlas_attention.fusion import Box, Range

RASTER_MM = 6.0
"""Distance of the samples: less than the thickness of any part of a body that holds an organ."""

LEAST_SHARE = 0.25
"""Of the size of the largest component: smaller ones are table, cables and noise, larger ones may
be a second leg."""


class CanonicalSlices(Protocol):
    """A CT whose slices can be read in any order."""

    @property
    def canonical(self) -> VolumeGeometry:
        """The grid, its axes turned to RAS+."""

    def read(self, start: int, stop: int, /) -> NDArray[np.float32]:
        """Canonical slices ``[start, stop)`` along z: HU ``[z, y, x]``."""


def body_box(ct: CanonicalSlices, above_hu: float) -> Box | None:
    """The bounding box of the body in voxels of the canonical grid; None if everything is air.

    Holds one slice at a time, and the raster.

    Args:
        ct: Hounsfield units.
        above_hu: brighter voxels may be body.
    """
    steps = [max(1, round(RASTER_MM / mm)) for mm in ct.canonical.spacing_mm[::-1]]
    slices = range(0, ct.canonical.shape[2], steps[0])
    raster = np.stack([ct.read(z, z + 1)[0, :: steps[1], :: steps[2]] > above_hu for z in slices])
    components, count = ndimage.label(raster, np.ones((3, 3, 3)))
    if not count:
        return None
    sizes = np.bincount(components.ravel())[1:]
    large = np.flatnonzero(sizes >= LEAST_SHARE * sizes.max()) + 1
    found = ndimage.find_objects(components)
    z, y, x = (
        _between(
            min(found[component - 1][axis].start for component in large),
            max(found[component - 1][axis].stop for component in large),
            steps[axis],
            ct.canonical.shape[2 - axis],
        )
        for axis in range(3)
    )
    return z, y, x


def _between(start: int, stop: int, step: int, voxels: int) -> Range:
    """Raster points ``[start, stop)`` as voxels, up to the next points, which are not body."""
    return max(0, (start - 1) * step + 1), min(voxels, stop * step)


def on_grid(box: Box, native: tuple[int, int, int], grid: tuple[int, int, int]) -> Box:
    """The smallest box on another grid of the same extent that holds `box`.

    Args:
        native, grid: voxels (z, y, x) of the grid of `box` and of the other one.
    """
    z, y, x = (
        (start * new // old, -(-stop * new // old))
        for (start, stop), old, new in zip(box, native, grid, strict=True)
    )
    return z, y, x
