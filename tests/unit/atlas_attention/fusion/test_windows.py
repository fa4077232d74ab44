"""The sliding window plan: even steps, every voxel covered, shares that add up to one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from atlas_attention.fusion import MAX_OVERLAP, SLACK_SHARE, WindowPlan
from atlas_core.errors import InvalidInput

CASES = [
    ((40, 50, 60), (16, 16, 16), 0.5),
    ((41, 53, 67), (16, 20, 24), 0.25),
    ((97, 96, 95), (96, 96, 96), 0.5),
    ((10, 200, 7), (64, 64, 64), 0.75),
    ((30, 31, 32), (7, 5, 3), 0.75),
    ((20, 20, 20), (8, 8, 8), 0.0),
    ((1, 1, 1), (4, 4, 4), 0.5),
    ((5, 6, 7), (1, 1, 1), 0.5),
]


@pytest.mark.parametrize("grid, patch, overlap", CASES)
def test_every_voxel_is_covered_and_no_window_leaves_without_need(
    grid: tuple[int, int, int], patch: tuple[int, int, int], overlap: float
) -> None:
    plan = WindowPlan.over(grid, patch, overlap)
    for voxels, size, starts in zip(grid, patch, plan.starts, strict=True):
        covered = np.zeros(voxels, int)
        for start in starts:
            covered[max(0, start) : start + size] += 1
            if voxels >= size:
                assert 0 <= start <= voxels - size
            else:
                assert start <= 0 and start + size >= voxels
        assert covered.min() >= 1
        assert list(starts) == sorted(set(starts))
    windows = [window for k in range(plan.rows) for window in plan.row(k)]
    assert len(windows) == len(set(windows)) == len(plan)


@pytest.mark.parametrize("grid, patch, overlap", CASES)
def test_shares_add_up_to_one_and_leave_no_voxel_without_weight(
    grid: tuple[int, int, int], patch: tuple[int, int, int], overlap: float
) -> None:
    plan = WindowPlan.over(grid, patch, overlap)
    largest = 1.0
    for voxels, size, starts, shares in zip(grid, patch, plan.starts, plan.shares, strict=True):
        total = np.zeros(voxels)
        most = np.zeros(voxels)
        for start, share in zip(starts, shares, strict=True):
            inside = slice(max(0, -start), min(size, voxels - start))
            at = slice(max(0, start), min(voxels, start + size))
            total[at] += share[inside]
            most[at] = np.maximum(most[at], share[inside])
            assert not np.delete(share, np.arange(size)[inside]).any()
        assert np.allclose(total, 1.0)
        largest *= most.min()
    assert largest * 257 >= 1  # the heaviest window of every voxel survives quantisation


@pytest.mark.parametrize("patch", range(1, 100))
def test_no_patch_is_too_small_for_the_largest_overlap(patch: int) -> None:
    plan = WindowPlan.over((3 * patch, 3 * patch, 3 * patch + 1), (patch,) * 3, MAX_OVERLAP)
    largest = 1.0
    for voxels, starts, shares in zip(plan.grid, plan.starts, plan.shares, strict=True):
        most = np.zeros(voxels)
        for start, share in zip(starts, shares, strict=True):
            most[start : start + patch] = np.maximum(most[start : start + patch], share)
        largest *= most.min()
    assert largest * 257 >= 1


@pytest.mark.parametrize("grid, patch, overlap", CASES)
@pytest.mark.parametrize("seed", range(5))
def test_a_box_is_covered_and_no_window_leaves_the_grid(
    grid: tuple[int, int, int], patch: tuple[int, int, int], overlap: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ends = [sorted(rng.integers(0, n + 1, 2).tolist()) for n in grid]
    firsts = [min(a, n - 1) for (a, _), n in zip(ends, grid, strict=True)]
    box = tuple((a, max(a + 1, b)) for a, (_, b) in zip(firsts, ends, strict=True))
    plan = WindowPlan.over(grid, patch, overlap, box)  # type: ignore[arg-type]
    assert len(plan) <= len(WindowPlan.over(grid, patch, overlap))
    for voxels, size, starts, (first, last), shares in zip(
        grid, patch, plan.starts, box, plan.shares, strict=True
    ):
        covered = np.zeros(voxels)
        for start, share in zip(starts, shares, strict=True):
            at = slice(max(0, start), min(voxels, start + size))
            covered[at] += share[at.start - start : at.stop - start]
            assert voxels < size or 0 <= start <= voxels - size
        assert np.allclose(covered[first:last], 1.0)
        assert np.allclose(covered[covered > 0], 1.0)
    settled = [plan.settled(k) for k in range(-1, plan.rows + 1)]
    assert settled == sorted(settled) and settled[-1] == grid[0]


def test_those_of_nnunet_lie_where_its_predictor_lays_them() -> None:
    theirs = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")
    steps = theirs.compute_steps_for_sliding_window
    for patch in ((7, 32, 64), (96, 10, 33)):
        for grid in product((96, 97, 130, 201), repeat=3):
            for overlap in (0.25, 0.5, 0.75):
                wanted = steps(grid, patch, 1 - overlap)
                plan = WindowPlan.as_nnunet(grid, patch, overlap)
                assert [list(starts) for starts in plan.starts] == wanted
    assert WindowPlan.as_nnunet((4, 9, 9), (9, 9, 9), 0.5).starts == ((-2,), (0,), (0,))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("patch", [7, 32, 64, 96])
def test_windows_are_even_keep_the_overlap_and_are_never_more_than_monais(
    patch: int, overlap: float
) -> None:
    monai = pytest.importorskip("monai.data.utils")
    asked = max(1, int(patch * (1 - overlap)))
    slack = int(patch * SLACK_SHARE)
    saved = 0
    for voxels in range(patch, 6 * patch):
        starts = WindowPlan.over((voxels, patch, patch), (patch,) * 3, overlap).starts[0]
        steps = np.diff(starts)
        assert starts[0] == 0 and starts[-1] == voxels - patch
        if len(steps):
            assert steps.max() - steps.min() <= 1
            assert steps.max() <= min(patch, asked + slack)
        interval = patch if voxels == patch else asked
        theirs = {s[0].start for s in monai.dense_patch_slices((voxels,), (patch,), (interval,))}
        assert len(starts) <= len(theirs)
        if not slack:
            assert len(starts) == len(theirs)
        saved += len(theirs) - len(starts)
    assert (saved > 0) == (slack > 0 and overlap > 0)


def test_gaussian_is_the_one_of_monai_where_windows_meet() -> None:
    """Two windows side by side share a voxel in the ratio of MONAI's importance map."""
    monai = pytest.importorskip("monai.data.utils")
    importance = monai.compute_importance_map((16, 16, 16), mode="gaussian", sigma_scale=0.125)
    line = importance[8, 8].numpy() / importance[8, 8].numpy().max()
    plan = WindowPlan.over((16, 16, 24), (16, 16, 16), 0.5)
    first, second = plan.shares[2]
    ratio = line[8:] / (line[8:] + line[:8])
    assert np.allclose(first[8:], ratio, atol=2e-3)  # MONAI holds its map above 1e-3
    assert np.allclose(first[8:] + second[:8], 1.0)


def test_settled_slices_are_beyond_all_later_windows() -> None:
    plan = WindowPlan.over((41, 20, 20), (16, 16, 16), 0.5)
    for k in range(plan.rows):
        later = [plan.z_range(row)[0] for row in range(k + 1, plan.rows)]
        assert plan.settled(k) == min(later, default=41)


@pytest.mark.parametrize("overlap", [-0.1, 0.8, 1.0, float("nan")])
def test_refuses_an_overlap_out_of_range(overlap: float) -> None:
    with pytest.raises(InvalidInput, match="overlap"):
        WindowPlan.over((40, 40, 40), (16, 16, 16), overlap)
