"""Attended regions: connected components of an attention map, for an annotator to look at."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from atlas_core.frozen_model import FrozenModel
from atlas_core.geometry import Shape3
from atlas_core.imaging import Volume
from atlas_core.imaging.label_maps import TOUCHING
from pydantic import ConfigDict, Field
from scipy import ndimage

ATTENTION_LEVELS: Final = 136
"""Steps of a stored attention map per unit of Eq. 4: its bytes are multiples of 1/136."""

MAX_REGIONS: Final = 200
"""Regions of one organ at most; smaller ones are noise along its border."""


class AttendedRegion(FrozenModel):
    """One connected component of attended voxels."""

    model_config = ConfigDict(extra="ignore")  # a response: its schema stays open

    voxels: int
    region_ml: float = Field(description="Volume of the region, in millilitres.")
    attention_ml: float = Field(
        description="Attention in it, as attention size: the sum of Eq. 4 over its voxels, times "
        "the volume of a voxel, in millilitres."
    )
    peak: float = Field(description="Highest attention in it, as in Eq. 4.")
    peak_ijk: tuple[int, int, int] = Field(
        description="Voxel of the highest attention, of several the one closest to the centroid: "
        "where to look first. It always lies in the region, as the centroid may not."
    )
    peak_mm: tuple[float, float, float] = Field(description="Centre of that voxel, RAS+.")
    centroid_ijk: tuple[float, float, float] = Field(description="Weighted by attention.")
    centroid_mm: tuple[float, float, float] = Field(description="RAS+.")
    box_ijk: tuple[tuple[int, int, int], tuple[int, int, int]] = Field(
        description="First and last voxel, both included."
    )


class OrganRegion(AttendedRegion):
    """A region with the organ whose attention it is."""

    organ: str
    organ_ml: float = Field(description="Volume of the organ's label in force, in millilitres.")


def find_attended_regions(
    attention: Volume, threshold: float, start: Shape3 = (0, 0, 0)
) -> list[AttendedRegion]:
    """Connected components (26 neighbours) of voxels of at least `threshold`, by falling size.

    Args:
        attention: uint8 ``[i, j, k]``, multiples of 1/136.
        threshold: attention as in Eq. 4, >= 0; voxels of value 0 never belong to a region.
        start: voxel of the CT's grid at which the map, if it is cropped, begins.

    Returns:
        At most `MAX_REGIONS`.

    >>> import numpy as np
    >>> from atlas_core.geometry import VolumeGeometry
    >>> grid = VolumeGeometry.from_array((3, 1, 1), np.diag([10.0, 10.0, 10.0, 1.0]))
    >>> voxels = np.array([136, 136, 0], np.uint8).reshape(3, 1, 1)
    >>> regions = find_attended_regions(Volume(voxels, grid), threshold=0.2)
    >>> [(region.voxels, region.region_ml, region.attention_ml) for region in regions]
    [(2, 2.0, 2.0)]
    >>> regions[0].peak_ijk, regions[0].peak_mm
    ((0, 0, 0), (0.0, 0.0, 0.0))
    """
    level = max(1, math.ceil(threshold * ATTENTION_LEVELS))
    numbers, count = ndimage.label(attention.voxels >= level, structure=TOUCHING)
    if not count:
        return []
    sizes = np.bincount(numbers.ravel(order="K"), minlength=count + 1)
    largest = np.argsort(-sizes[1:], kind="stable")[:MAX_REGIONS] + 1
    boxes = ndimage.find_objects(numbers)
    return [_region(attention, numbers, int(n), boxes[n - 1], start) for n in largest]


def _region(
    attention: Volume,
    numbers: np.ndarray,
    number: int,
    box: tuple[slice, slice, slice],
    start: Shape3,
) -> AttendedRegion:
    inside = numbers[box] == number
    weights = np.where(inside, attention.voxels[box], 0).astype(np.float64) / ATTENTION_LEVELS
    first = np.array([axis.start for axis in box])
    centroid = np.array(ndimage.center_of_mass(weights)) + first
    highest = np.argwhere(weights == weights.max()) + first
    # In millimetres: slices lie further apart than pixels.
    spacing = np.array(attention.geometry.spacing_mm)
    peak = highest[np.argmin(np.linalg.norm((highest - centroid) * spacing, axis=1))]
    to_mm = attention.geometry.matrix
    mm, peak_mm = (to_mm @ np.array([*point, 1.0]) for point in (centroid, peak))
    centroid += start
    i, j, k = (peak + start).tolist()
    low = (first + start).tolist()
    high = (low + np.array(inside.shape) - 1).tolist()
    voxels = int(np.count_nonzero(inside))
    return AttendedRegion(
        voxels=voxels,
        region_ml=voxels * attention.geometry.voxel_ml,
        attention_ml=float(weights.sum()) * attention.geometry.voxel_ml,
        peak=float(weights.max()),
        peak_ijk=(i, j, k),
        peak_mm=(float(peak_mm[0]), float(peak_mm[1]), float(peak_mm[2])),
        centroid_ijk=(float(centroid[0]), float(centroid[1]), float(centroid[2])),
        centroid_mm=(float(mm[0]), float(mm[1]), float(mm[2])),
        box_ijk=(tuple(low), tuple(high)),
    )
