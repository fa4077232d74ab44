"""Attended regions: where to jump to, and how large they are."""

from __future__ import annotations

import numpy as np
import pytest
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume
from atlas_review.volumes.attended_regions import ATTENTION_LEVELS, find_attended_regions
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

THRESHOLD = 0.2
GRID = VolumeGeometry.from_array((7, 6, 5), np.diag([-2.0, 3.0, 4.0, 1.0]))


@given(hnp.arrays(np.uint8, GRID.shape, elements=st.integers(0, ATTENTION_LEVELS)))
def test_the_jump_lands_on_the_highest_attention_of_the_region(voxels: np.ndarray) -> None:
    start = (10, 20, 30)
    for region in find_attended_regions(Volume(voxels, GRID), THRESHOLD, start):
        first, last = region.box_ijk
        at = tuple(np.subtract(region.peak_ijk, start))
        assert all(a <= c <= b for a, c, b in zip(first, region.peak_ijk, last, strict=True))
        assert region.peak == pytest.approx(voxels[at] / ATTENTION_LEVELS)
        assert region.peak >= THRESHOLD
        assert region.peak_mm == pytest.approx(tuple((GRID.matrix @ [*at, 1.0])[:3]))
        assert region.region_ml == pytest.approx(region.voxels * 0.024)
        assert region.attention_ml <= region.peak * region.region_ml + 1e-9


def test_of_a_ring_it_is_a_voxel_of_the_ring() -> None:
    """Its centroid is not: that is where the crosshair used to land."""
    voxels = np.zeros(GRID.shape, np.uint8)
    voxels[1:6, 1:6, 2] = 100
    voxels[2:5, 2:5, 2] = 0
    (region,) = find_attended_regions(Volume(voxels, GRID), THRESHOLD)
    assert region.centroid_ijk == pytest.approx((3, 3, 2))
    assert voxels[region.peak_ijk] == 100
