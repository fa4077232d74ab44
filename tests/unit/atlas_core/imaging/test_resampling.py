"""Resampling on shapes whose answer is known."""

from __future__ import annotations

import doctest
from concurrent.futures import ThreadPoolExecutor

import atlas_core.imaging.resampling
import numpy as np
import pytest
from atlas_core.errors import GridMismatch, InvalidInput, UnknownLabel
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.resampling import (
    axis_weights,
    resample_across,
    resample_image,
    resample_label,
)
from nibabel.eulerangles import euler2mat
from scipy import ndimage

FINE = VolumeGeometry.from_array((60, 50, 40), np.diag([0.8, 0.8, 1.0, 1.0]))


def ball(geometry: VolumeGeometry, radius_mm: float = 15.0) -> np.ndarray:
    """Voxels within `radius_mm` of the middle of `FINE`."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    places = index @ geometry.matrix[:3, :3].T + geometry.matrix[:3, 3]
    return np.linalg.norm(places - FINE.corners_mm().mean(axis=0), axis=-1) < radius_mm


def test_the_examples_of_the_documentation_hold() -> None:
    assert doctest.testmod(atlas_core.imaging.resampling).failed == 0


@pytest.mark.parametrize(
    ("spacing", "within"),
    # Upsampling is exact; a sampled triangle is off by a few hundredths of a voxel.
    [((0.5, 0.7, 0.4), 1e-3), ((1.5, 1.5, 1.5), 0.4), ((3.0, 3.0, 3.0), 0.4)],
)
def test_a_linear_image_stays_linear_away_from_the_edges(
    spacing: tuple[float, float, float], within: float
) -> None:
    def ramp(geometry: VolumeGeometry) -> np.ndarray:
        index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
        return (index @ geometry.matrix[:3, :3].T + geometry.matrix[:3, 3]) @ [3.0, -2.0, 1.0]

    target = FINE.resampled(spacing)
    result = resample_image(ramp(FINE).astype(np.float32), FINE, target)
    inner = (slice(4, -4),) * 3
    assert np.allclose(result[inner], ramp(target)[inner], atol=within)


def test_downsampling_is_antialiased() -> None:
    """Every other slice bright: plain linear interpolation would still show stripes."""
    voxels = np.zeros(FINE.shape, np.int16)
    voxels[::2] = 1000
    result = resample_image(voxels, FINE, FINE.resampled((2.0, 0.8, 1.0)))
    assert np.ptp(result[2:-2]) < 250


def test_the_mean_is_kept() -> None:
    voxels = np.random.default_rng(0).normal(0, 300, FINE.shape).astype(np.float32)
    result = resample_image(voxels, FINE, FINE.resampled((1.6, 1.6, 2.0)))
    assert result.mean() == pytest.approx(voxels.mean(), abs=3)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.4, 0.5, 0.6), (0.8, 0.8, 3.0)])
def test_a_label_keeps_its_volume_and_place(spacing: tuple[float, float, float]) -> None:
    target = FINE.resampled(spacing)
    labels = ball(FINE).astype(np.uint8) * 5
    result = resample_label(labels, FINE, target)
    assert np.count_nonzero(result) * target.voxel_ml == pytest.approx(
        np.count_nonzero(labels) * FINE.voxel_ml, rel=0.03
    )
    overlap = 2 * np.count_nonzero((result == 5) & ball(target))
    assert overlap / (np.count_nonzero(result) + ball(target).sum()) > 0.97
    there_and_back = resample_label(result, target, FINE)
    assert np.mean((there_and_back == 5) == ball(FINE)) > 0.98


def test_neighbours_share_a_border_without_a_gap() -> None:
    """Per-label thresholds leave background between organs that touch; a vote does not."""
    labels = np.where(np.arange(60)[:, None, None] < 30, 1, 2).astype(np.uint8)
    labels = np.ascontiguousarray(np.broadcast_to(labels, FINE.shape))
    assert set(np.unique(resample_label(labels, FINE, FINE.resampled((1.3,) * 3)))) == {1, 2}


def test_a_mask_on_an_oblique_grid_is_brought_onto_the_ct() -> None:
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(0.3, -0.2, 0.25) @ np.diag([-0.9, 1.1, 0.7])
    affine[:3, 3] = FINE.corners_mm().mean(axis=0) - affine[:3, :3] @ np.array([30, 25, 35])
    oblique = VolumeGeometry.from_array((60, 50, 70), affine)
    result = resample_label(ball(oblique), oblique, FINE)
    assert result.dtype == np.bool_
    overlap = 2 * np.count_nonzero(result & ball(FINE)) / (result.sum() + ball(FINE).sum())
    assert overlap > 0.97


def test_a_vote_between_arbitrary_grids_is_that_of_linear_interpolation() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, (20, 20, 20)).astype(np.uint8)
    old = VolumeGeometry.from_array((20, 20, 20), np.diag([1.0, 1.0, 1.0, 1.0]))
    matrix = np.eye(4)
    matrix[:3, :3] = euler2mat(0.1, 0.05, -0.1) * 0.9
    matrix[:3, 3] = (2.0, 3.0, 2.5)
    new = VolumeGeometry.from_array((12, 12, 12), matrix)
    index = np.stack(np.meshgrid(*map(np.arange, new.shape), indexing="ij"), 0).reshape(3, -1)
    points = matrix[:3, :3] @ index + matrix[:3, 3:]
    soft = np.stack(
        [ndimage.map_coordinates((labels == v).astype(float), points, order=1) for v in range(3)]
    )
    result = resample_label(labels, old, new).reshape(-1)
    won = soft[result, np.arange(result.size)]
    assert (won >= soft.max(axis=0) - 0.005).all()


def test_what_lies_outside_is_background() -> None:
    far = VolumeGeometry.from_array(
        FINE.shape, np.diag([0.8, 0.8, 1.0, 1.0]) + 500 * np.eye(4, k=3)
    )
    assert not resample_label(np.ones(FINE.shape, np.uint8), FINE, far).any()


def test_an_image_is_not_moved_to_another_box() -> None:
    moved = FINE.matrix.copy()
    moved[0, 3] += 5
    with pytest.raises(GridMismatch, match="own box"):
        resample_image(np.zeros(FINE.shape), FINE, VolumeGeometry.from_array(FINE.shape, moved))


def test_too_many_labels_and_missing_slices_are_refused() -> None:
    small = VolumeGeometry.from_array((10, 10, 3), np.eye(4))
    with pytest.raises(UnknownLabel, match="300"):
        resample_label(np.arange(300).reshape(10, 10, 3), small, small)
    with pytest.raises(InvalidInput, match="missing"):
        resample_across(np.zeros((2, 1, 1), np.float32), axis_weights(9, 3), 0, 2, 0)
    with pytest.raises(InvalidInput, match="voxel"):
        axis_weights(0, 3)


def test_several_threads_may_resample_at_once() -> None:
    voxels = np.random.default_rng(5).integers(-1000, 1000, FINE.shape).astype(np.int16)
    target = FINE.resampled((1.5, 1.5, 1.5))
    expected = resample_image(voxels, FINE, target)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: resample_image(voxels, FINE, target), range(12)))
    assert all(np.array_equal(result, expected) for result in results)
