"""Laws of resampling: flips commute to the bit, slabs equal the whole, labels invent nothing."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.resampling import (
    axis_weights,
    resample_across,
    resample_image,
    resample_label,
    resample_planes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

LENGTHS = st.integers(1, 40)
SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
SPACINGS = st.tuples(*[st.floats(0.4, 4.0)] * 3)
AXES = st.sampled_from(list(permutations(range(3))))
FLIPS = st.tuples(*[st.booleans()] * 3)
CTS = hnp.arrays(np.int16, SHAPES, elements=st.integers(-1024, 3071))
LABELS = hnp.arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 0, 1, 3, 255]))


def grid(shape: tuple[int, ...]) -> VolumeGeometry:
    affine = np.diag([0.8, 1.1, 2.5, 1.0])
    affine[:3, 3] = (-40.0, 12.0, 300.0)
    return VolumeGeometry.from_array(shape, affine)


def turned(
    voxels: NDArray[np.generic], axes: tuple[int, ...], flips: tuple[bool, ...]
) -> tuple[NDArray[np.generic], VolumeGeometry]:
    """`voxels` on `grid` with axes flipped, then permuted, and their grid."""
    matrix = grid(voxels.shape).matrix.copy()
    for axis, back in enumerate(flips):
        if back:
            voxels = np.flip(voxels, axis)
            matrix[:3, 3] += matrix[:3, axis] * (voxels.shape[axis] - 1)
            matrix[:3, axis] *= -1
    matrix[:, :3] = matrix[:, axes]
    voxels = voxels.transpose(axes)
    return voxels, VolumeGeometry.from_array(voxels.shape, matrix)


@given(LENGTHS, LENGTHS)
def test_weights_are_a_mirrored_partition_of_one(old: int, new: int) -> None:
    weights = axis_weights(old, new)
    assert np.allclose(weights.weights.sum(axis=1), 1.0, atol=1e-6)
    assert (weights.weights >= 0).all()
    assert (weights.start >= 0).all()
    assert (weights.start + weights.count <= old).all()
    for j in range(new):
        mirror, count = new - 1 - j, weights.count[j]
        assert weights.count[mirror] == count
        assert weights.start[mirror] == old - weights.start[j] - count
        assert np.array_equal(weights.weights[mirror, :count], weights.weights[j, :count][::-1])


@given(LENGTHS, LENGTHS)
def test_weights_are_the_triangle_of_their_definition(old: int, new: int) -> None:
    weights = axis_weights(old, new)
    position = (np.arange(new) + 0.5) * old / new - 0.5
    width = max(1.0, old / new)
    triangle = np.maximum(0, 1 - np.abs(np.arange(old) - position[:, None]) / width)
    triangle /= triangle.sum(axis=1, keepdims=True)
    dense = np.zeros((new, old))
    for j in range(new):
        chosen = slice(weights.start[j], weights.start[j] + weights.count[j])
        dense[j, chosen] = weights.weights[j, : weights.count[j]]
    assert np.allclose(dense, triangle, atol=1e-6)


@settings(deadline=None, max_examples=40)  # the first example compiles
@given(CTS, SPACINGS)
def test_an_image_is_the_separable_mean_of_its_weights(
    voxels: NDArray[np.int16], spacing: tuple[float, float, float]
) -> None:
    geometry = grid(voxels.shape)
    target = geometry.resampled(spacing)
    out = voxels.astype(np.float64)
    for axis in range(3):
        weights = axis_weights(voxels.shape[axis], target.shape[axis])
        rows = [
            np.tensordot(
                weights.weights[j, : weights.count[j]].astype(np.float64),
                out.take(range(weights.start[j], weights.start[j] + weights.count[j]), axis),
                (0, axis),
            )
            for j in range(weights.new)
        ]
        out = np.stack(rows, axis)
    result = resample_image(voxels, geometry, target)
    assert result.shape == target.shape
    assert np.allclose(result, out, atol=5e-3)
    assert result.min() >= voxels.min() - 1e-3
    assert result.max() <= voxels.max() + 1e-3


@settings(deadline=None, max_examples=40)  # the first example compiles
@given(CTS, LABELS, SPACINGS, AXES, FLIPS)
def test_axis_order_and_flips_commute_with_resampling_to_the_bit(
    voxels: NDArray[np.int16],
    labels: NDArray[np.uint8],
    spacing: tuple[float, float, float],
    axes: tuple[int, ...],
    flips: tuple[bool, ...],
) -> None:
    target = grid(voxels.shape).resampled(spacing)
    other, other_grid = turned(voxels, axes, flips)
    assert np.array_equal(
        resample_image(other, other_grid, target),
        resample_image(voxels, grid(voxels.shape), target),
    )
    target = grid(labels.shape).resampled(spacing)
    other, other_grid = turned(labels, axes, flips)
    assert np.array_equal(
        resample_label(other, other_grid, target),
        resample_label(labels, grid(labels.shape), target),
    )


@settings(deadline=None, max_examples=40)  # the first example compiles
@given(CTS, SPACINGS, FLIPS)
def test_a_flipped_volume_is_the_flipped_result(
    voxels: NDArray[np.int16], spacing: tuple[float, float, float], flips: tuple[bool, ...]
) -> None:
    """Unlike above, the grid does not follow: the mirror image itself is resampled."""
    geometry = grid(voxels.shape)
    target = geometry.resampled(spacing)
    mirrored = tuple(axis for axis in range(3) if flips[axis])
    flipped = resample_image(np.flip(voxels, mirrored), geometry, target)
    assert np.array_equal(np.flip(flipped, mirrored), resample_image(voxels, geometry, target))


@settings(deadline=None, max_examples=40)  # the first example compiles
@given(CTS, SPACINGS, st.integers(1, 5))
def test_slab_wise_equals_whole_to_the_bit(
    voxels: NDArray[np.int16], spacing: tuple[float, float, float], size: int
) -> None:
    geometry = grid(voxels.shape)
    target = geometry.resampled(spacing)
    x, y, z = (axis_weights(o, n) for o, n in zip(geometry.shape, target.shape, strict=True))
    block = np.ascontiguousarray(voxels.transpose(2, 1, 0)).astype(np.float32)
    slabs = []
    for start in range(0, z.new, size):
        stop = min(start + size, z.new)
        first, last = z.source_range(start, stop)
        planes = resample_planes(block[first:last], y, x)
        slabs.append(resample_across(planes, z, start, stop, first))
    whole = resample_image(voxels, geometry, target)
    assert np.array_equal(np.concatenate(slabs).transpose(2, 1, 0), whole)


@settings(deadline=None, max_examples=40)  # the first example compiles
@given(LABELS, SPACINGS)
def test_a_label_map_is_the_argmax_of_its_one_hot_images(
    labels: NDArray[np.uint8], spacing: tuple[float, float, float]
) -> None:
    geometry = grid(labels.shape)
    target = geometry.resampled(spacing)
    values = np.unique(np.append(labels, 0))
    soft = np.stack(
        [resample_image((labels == v).astype(np.float32), geometry, target) for v in values]
    )
    result = resample_label(labels, geometry, target)
    assert result.dtype == labels.dtype
    assert set(np.unique(result)) <= set(values)
    rank = np.searchsorted(values, result)
    won = np.take_along_axis(soft, rank[None], 0)[0]
    assert (won >= soft.max(axis=0) - 1e-5).all()
    # On a tie the lowest label wins: no lower one may have clearly as much.
    lower = np.arange(len(values))[:, None, None, None] < rank
    assert (np.where(lower, soft, -1.0).max(axis=0) <= won + 1e-5).all()


@settings(deadline=None, max_examples=40)  # the first example compiles
@given(LABELS, st.sampled_from(["int16", "int32", "int64"]), st.sampled_from([-5, 700]))
def test_values_beyond_a_byte_are_resampled_like_bytes(
    labels: NDArray[np.uint8], dtype: str, value: int
) -> None:
    geometry = grid(labels.shape)
    target = geometry.resampled((1.5, 1.5, 1.5))
    wide = labels.astype(dtype)
    wide[labels == 255] = value
    expected = resample_label(labels, geometry, target).astype(dtype)
    expected[expected == 255] = value
    result = resample_label(wide, geometry, target)
    assert result.dtype == np.dtype(dtype)
    if value > 3:  # the order of labels decides ties; a negative one would stand elsewhere
        assert np.array_equal(result, expected)
    else:
        assert set(np.unique(result)) <= {*np.unique(wide).tolist(), 0}


@settings(deadline=None, max_examples=40)  # the first example compiles
@given(LABELS, AXES, FLIPS)
def test_a_grid_on_itself_changes_nothing(
    labels: NDArray[np.uint8], axes: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    geometry = grid(labels.shape)
    other, other_grid = turned(labels, axes, flips)
    assert np.array_equal(resample_label(labels, geometry, other_grid), other)
    assert np.array_equal(resample_image(labels, geometry, other_grid), other)


@settings(deadline=None, max_examples=40)  # the first example compiles
@given(LABELS, st.tuples(*[st.integers(-4, 4)] * 3), SHAPES)
def test_a_crop_or_shift_by_whole_voxels_is_exact(
    labels: NDArray[np.uint8], shift: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    geometry = grid(labels.shape)
    matrix = geometry.matrix.copy()
    matrix[:3, 3] += matrix[:3, :3] @ np.array(shift)
    result = resample_label(labels, geometry, VolumeGeometry.from_array(shape, matrix))
    expected = np.zeros(shape, np.uint8)
    for index in np.ndindex(shape):
        source = tuple(i + s for i, s in zip(index, shift, strict=True))
        if all(0 <= i < n for i, n in zip(source, labels.shape, strict=True)):
            expected[index] = labels[source]
    assert np.array_equal(result, expected)
