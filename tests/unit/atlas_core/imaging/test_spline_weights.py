"""nnU-Net's resampling, against nnU-Net's own."""

from __future__ import annotations

import numpy as np
import pytest
from atlas_core.imaging.resampling import resample_across, resample_planes
from atlas_core.imaging.spline_weights import nearest_weights, nnunet_weights, spline_weights

resampling = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")

Grid = tuple[int, int, int]


@pytest.mark.parametrize(
    ("old_mm", "new_mm", "old", "new"),
    [
        ((1.5, 0.8, 0.8), (1.2, 1.0, 1.0), (20, 41, 37), (25, 33, 30)),  # splines everywhere
        ((5.0, 0.7, 0.7), (5.0, 1.0, 1.0), (9, 44, 40), (9, 31, 28)),  # thick slices stay
        ((5.0, 0.8, 0.8), (2.5, 1.0, 1.0), (9, 40, 37), (18, 32, 30)),  # thick in the CT
        ((1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (20, 17, 16), (5, 17, 16)),  # thick for the network
    ],
)
def test_it_is_what_nnunet_does(
    old_mm: tuple[float, float, float], new_mm: tuple[float, float, float], old: Grid, new: Grid
) -> None:
    ct = np.random.default_rng(1).uniform(-200, 300, old).astype(np.float32)
    # nnU-Net does not let a slice leave its own range: here it is the same for all.
    ct[:, 0, 0], ct[:, -1, -1] = -200, 300
    expected = resampling.resample_data_or_seg_to_shape(
        ct[None], new, old_mm, new_mm, is_seg=False, order=3, order_z=0, force_separate_z=None
    )[0]
    z, y, x = nnunet_weights(old_mm, new_mm, old, new)
    got = resample_across(resample_planes(ct, y, x), z, 0, z.new, 0)
    assert np.abs(np.clip(got, -200, 300) - expected).max() < 0.01


@pytest.mark.parametrize(("old", "new"), [(1, 3), (7, 7), (30, 11), (9, 25)])
def test_weights_add_up_to_one_and_flip_with_the_axis(old: int, new: int) -> None:
    spline = spline_weights(old, new)
    assert np.abs(spline.weights.sum(axis=1) - 1).max() < 1e-6
    dense = np.zeros((new, old))
    for j in range(new):
        dense[j, spline.start[j] : spline.start[j] + spline.count[j]] = spline.weights[
            j, : spline.count[j]
        ]
    assert np.abs(dense - dense[::-1, ::-1]).max() < 1e-6
    nearest = nearest_weights(old, new)
    assert (nearest.count == 1).all() and (np.diff(nearest.start) >= 0).all()


def test_a_grid_onto_itself_is_itself() -> None:
    ct = np.random.default_rng(2).normal(0, 300, (5, 20, 18)).astype(np.float32)
    z, y, x = nnunet_weights((1, 1, 1), (1, 1, 1), ct.shape, ct.shape)
    got = resample_across(resample_planes(ct, y, x), z, 0, 5, 0)
    assert np.abs(got - ct).max() < 0.01
