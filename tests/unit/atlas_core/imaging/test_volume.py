"""The hash that names a volume's content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from atlas_core.errors import GridMismatch
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume, content_sha256, distinct_values, read_volume, write_volume
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

SHAPE = (4, 3, 5)
GEOMETRY = VolumeGeometry.from_array(SHAPE, np.diag([0.7, 0.7, 2.5, 1.0]))
VOXELS = np.arange(60, dtype=np.int16).reshape(SHAPE) - 30


def test_how_it_is_stored_does_not_matter(tmp_path: Path) -> None:
    expected = content_sha256(Volume(VOXELS, GEOMETRY))
    for dtype in ("int8", "int32", "int64", "float32", "float64", ">i2"):
        assert content_sha256(Volume(VOXELS.astype(dtype), GEOMETRY)) == expected
    assert content_sha256(Volume(np.asfortranarray(VOXELS), GEOMETRY)) == expected
    for name in ("v.nii", "v.nii.gz"):
        write_volume(tmp_path / name, VOXELS, GEOMETRY)
        assert content_sha256(read_volume(tmp_path / name)) == expected


def test_every_voxel_and_the_grid_matter() -> None:
    seen = {content_sha256(Volume(VOXELS, GEOMETRY))}
    for index in np.ndindex(SHAPE):
        changed = VOXELS.copy()
        changed[index] += 1
        seen.add(content_sha256(Volume(changed, GEOMETRY)))
    moved = GEOMETRY.matrix.copy()
    moved[2, 3] += 0.01
    seen.add(content_sha256(Volume(VOXELS, VolumeGeometry.from_array(SHAPE, moved))))
    turned = VolumeGeometry.from_array((3, 4, 5), GEOMETRY.matrix)
    seen.add(content_sha256(Volume(VOXELS.reshape(3, 4, 5), turned)))
    seen.add(content_sha256(Volume(VOXELS + np.float32(0.5), GEOMETRY)))
    assert len(seen) == 64


def test_voxels_and_geometry_belong_together() -> None:
    with pytest.raises(GridMismatch):
        Volume(VOXELS[1:], GEOMETRY)


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.int32, np.float32]),
        st.tuples(*[st.integers(1, 5)] * 3),
        elements=st.integers(0, 200),
    )
)
def test_distinct_values_are_those_that_occur(voxels: NDArray[np.generic]) -> None:
    assert distinct_values(voxels) == tuple(np.unique(voxels).tolist())


def test_distinct_values_may_lie_far_apart() -> None:
    voxels = np.array([[[-(1 << 31), 0, (1 << 31) - 1]]], np.int32)
    assert distinct_values(voxels) == (-(1 << 31), 0, (1 << 31) - 1)
