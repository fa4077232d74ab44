"""Laws of geometry: turning a file's axes changes nothing that matters."""

from __future__ import annotations

from itertools import permutations

import nibabel as nib
import numpy as np
from atlas_core.geometry import VolumeGeometry
from hypothesis import given
from hypothesis import strategies as st
from nibabel.eulerangles import euler2mat
from numpy.typing import NDArray

SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
SPACINGS = st.tuples(*[st.floats(0.3, 6.0)] * 3)
ORIGINS = st.tuples(*[st.floats(-500.0, 500.0)] * 3)
ANGLES = st.tuples(*[st.floats(-0.6, 0.6) | st.just(np.pi / 4)] * 3)
AXES = st.sampled_from(list(permutations(range(3))))
FLIPS = st.tuples(*[st.booleans()] * 3)


@st.composite
def geometries(draw: st.DrawFn) -> VolumeGeometry:
    """Grids in any position, oblique, in any axis order."""
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(*draw(ANGLES)) @ np.diag(draw(SPACINGS))
    affine[:3, 3] = draw(ORIGINS)
    geometry = VolumeGeometry.from_array(draw(SHAPES), affine)
    return turned(geometry, draw(AXES), draw(FLIPS))


def turned(
    geometry: VolumeGeometry, axes: tuple[int, ...], flips: tuple[bool, ...]
) -> VolumeGeometry:
    """The same grid with axes flipped, then permuted: new axis ``n`` is old axis ``axes[n]``."""
    matrix = geometry.matrix.copy()
    for axis, back in enumerate(flips):
        if back:
            matrix[:3, 3] += matrix[:3, axis] * (geometry.shape[axis] - 1)
            matrix[:3, axis] *= -1
    matrix[:, :3] = matrix[:, axes]
    return VolumeGeometry.from_array([geometry.shape[a] for a in axes], matrix)


def places_mm(geometry: VolumeGeometry) -> NDArray[np.float64]:
    """World coordinates of every voxel, ``[i, j, k, 3]``."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    return index @ geometry.matrix[:3, :3].T + geometry.matrix[:3, 3]


def box_mm(geometry: VolumeGeometry) -> NDArray[np.float64]:
    """Outer corners of the first and the last voxel."""
    ends = np.array([[-0.5] * 3, np.array(geometry.shape) - 0.5])
    return ends @ geometry.matrix[:3, :3].T + geometry.matrix[:3, 3]


@given(geometries())
def test_canonical_axes_point_right_anterior_superior(geometry: VolumeGeometry) -> None:
    canonical = geometry.canonical()
    assert canonical.axis_codes == "RAS"
    assert canonical.axis_map.source == (0, 1, 2)
    assert canonical.canonical() == canonical


@given(geometries())
def test_voxels_stay_where_they_are(geometry: VolumeGeometry) -> None:
    axis_map, places = geometry.axis_map, places_mm(geometry)
    canonical = np.stack([axis_map.to_canonical(places[..., a]) for a in range(3)], -1)
    assert np.allclose(canonical, places_mm(geometry.canonical()), atol=1e-9)
    assert np.array_equal(axis_map.from_canonical(canonical[..., 0]), places[..., 0])


@given(geometries(), AXES, FLIPS)
def test_the_order_of_file_axes_does_not_show_in_the_canonical_grid(
    geometry: VolumeGeometry, axes: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    other = turned(geometry, axes, flips)
    assert other.canonical().same_grid(geometry.canonical())
    assert sorted(other.spacing_mm) == sorted(geometry.spacing_mm)
    assert np.isclose(other.voxel_ml, geometry.voxel_ml)


@given(geometries())
def test_orientation_codes_are_those_of_nibabel(geometry: VolumeGeometry) -> None:
    direction = geometry.matrix[:3, :3] / geometry.spacing_mm
    largest = np.sort(np.abs(direction), axis=0)
    if (largest[2] - largest[1]).min() > 0.2:  # far from 45 degrees, where codes are a convention
        assert geometry.axis_codes == "".join(nib.aff2axcodes(geometry.matrix))


@given(geometries(), SPACINGS)
def test_resampling_keeps_the_box(
    geometry: VolumeGeometry, spacing: tuple[float, float, float]
) -> None:
    new = geometry.resampled(spacing)
    assert np.allclose(box_mm(new), box_mm(geometry), atol=1e-6)
    assert np.isclose(new.voxels * new.voxel_ml, geometry.voxels * geometry.voxel_ml)
    for n, got, asked in zip(new.shape, new.spacing_mm, spacing, strict=True):
        assert n == 1 or abs(got - asked) * n <= 0.5 * asked + 1e-6
    assert geometry.resampled(geometry.spacing_mm).same_grid(geometry)


@given(geometries(), SPACINGS)
def test_resampling_commutes_with_turning(
    geometry: VolumeGeometry, spacing: tuple[float, float, float]
) -> None:
    file_spacing = [0.0] * 3
    for axis, file_axis in enumerate(geometry.axis_map.source):
        file_spacing[file_axis] = spacing[axis]
    one = geometry.canonical().resampled(spacing)
    other = geometry.resampled((file_spacing[0], file_spacing[1], file_spacing[2])).canonical()
    # Half a voxel more or less may round either way; elsewhere the grids are the same.
    if one.shape == other.shape:
        assert one.same_grid(other)


@given(geometries(), st.floats(-1e-4, 1e-4), st.sampled_from(range(3)))
def test_rounding_is_no_other_grid_and_half_a_voxel_is(
    geometry: VolumeGeometry, jitter: float, axis: int
) -> None:
    near, far = geometry.matrix.copy(), geometry.matrix.copy()
    near[axis, 3] += jitter
    far[:3, 3] += 0.5 * geometry.matrix[:3, axis]
    assert geometry.same_grid(geometry)
    assert geometry.same_grid(VolumeGeometry.from_array(geometry.shape, near))
    assert not geometry.same_grid(VolumeGeometry.from_array(geometry.shape, far))
