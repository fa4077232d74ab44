"""Reading `released` against a straightforward SciPy implementation of the same definition."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
from atlas_attention.fusion import FRACTION_BITS, UNIT, Fused, entropy_terms, fuse
from atlas_attention.fusion.kernels import KEEP_INCONSISTENCY, KEEP_UNCERTAINTY
from atlas_attention.fusion.released import ReleasedFuser, mark_candidates
from atlas_core.records import Reading
from numpy.typing import NDArray
from scipy import ndimage


def smooth_predictions(
    shape: tuple[int, int, int], models: int, organs: int, seed: int = 0
) -> NDArray[np.uint8]:
    """Predictions that agree and differ in lumps, so that openings keep some and drop some."""
    rng = np.random.default_rng(seed)

    def lumps(sigma: float) -> NDArray[np.float64]:
        field = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
        return np.asarray(field / (field.std() + 0.1))

    soft = np.empty((models, organs, *shape))
    for c in range(organs):
        common = lumps(3.0)
        for n in range(models):
            soft[n, c] = 1 / (1 + np.exp(2 - 3 * common - 1.5 * lumps(2.5)))
    return np.rint(255 * np.where(soft > 0.02, soft, 0)).astype(np.uint8)


def opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    full = np.ones((3, 3, 3), bool)
    eroded = ndimage.binary_erosion(mask, full, iterations=2)
    return np.asarray(ndimage.binary_dilation(eroded, full, iterations=2))


def released_by_scipy(soft: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The definition, one organ at a time; its sums in the fixed point that the bytes stand for."""
    models = len(soft)
    p = soft / 255.0
    hard = 2 * soft.sum(axis=0, dtype=int) > 255 * models
    attention = np.zeros(soft.shape[1:], np.uint8)
    for c in range(soft.shape[1]):
        std = p[:, c].std(axis=0)
        entropy = -(p[:, c] * np.log(np.where(p[:, c] > 0, p[:, c], 1))).mean(axis=0)
        terms = entropy_terms(models, UNIT)[soft[:, c]].sum(axis=0)
        overlap = hard[c] & np.delete(hard, c, axis=0).any(axis=0)
        fixed = (
            np.where(opened(std > 0.1), np.floor(std * UNIT + 1e-3), 0)
            + np.where(opened(entropy > 0.05), terms, 0)
            + overlap * UNIT
        )
        attention[c] = (fixed.astype(int) + (1 << FRACTION_BITS - 1)) >> FRACTION_BITS
    return attention


@pytest.mark.parametrize(
    "shape, models, organs",
    [
        ((24, 40, 52), 3, 4),
        ((5, 9, 40), 3, 2),
        ((4, 30, 30), 2, 3),
        ((1, 1, 3), 3, 2),
        ((20, 20, 20), 1, 3),
    ],
)
def test_equals_the_definition_voxel_for_voxel(
    shape: tuple[int, int, int], models: int, organs: int
) -> None:
    soft = smooth_predictions(shape, models, organs)
    fused = fuse(soft, Reading.RELEASED)
    assert (fused.attention == released_by_scipy(soft)).all()
    paper = fuse(soft)
    assert (fused.mean == paper.mean).all() and (fused.label == paper.label).all()


def test_borders_are_eroded_as_in_the_published_script() -> None:
    """Outside the volume nothing is set: a blob at the border is eroded from there too."""
    soft = np.zeros((1, 1, 12, 12, 12), np.uint8)
    soft[..., :5, :5, :5] = 94
    assert (fuse(soft, Reading.RELEASED).attention > 0).sum() == 125
    soft[..., 4, :, :] = 0
    assert not fuse(soft, Reading.RELEASED).attention.any()


def test_thresholds_are_exact_for_every_combination_of_three_bytes() -> None:
    triples = np.array(list(combinations_with_replacement(range(256), 3)), np.uint8).T
    gates = mark_candidates(np.ascontiguousarray(triples).reshape(3, 1, 1, 1, -1)).ravel()
    p = triples / 255.0
    entropy = -(p * np.log(np.where(p > 0, p, 1))).mean(axis=0)
    assert ((gates & KEEP_INCONSISTENCY > 0) == (p.std(axis=0) > 0.1)).all()
    assert ((gates & KEEP_UNCERTAINTY > 0) == (entropy > 0.05)).all()


def test_attended_voxels_never_round_to_zero() -> None:
    """An entropy or a deviation just above its threshold still shows in the byte."""
    for soft in ([14, 0, 0], [67, 10, 8], [255, 200, 250]):
        lump = np.broadcast_to(np.array(soft, np.uint8)[:, None, None, None, None], (3, 1, 5, 5, 5))
        marked = mark_candidates(np.ascontiguousarray(lump)) > 0
        assert ((fuse(lump, Reading.RELEASED).attention > 0) == marked).all()


@pytest.mark.parametrize(
    "cuts", [[24], [1] * 24, [3, 1, 1, 9, 2, 4, 4], [20, 4], [4, 20], [0, 24, 0]]
)
def test_slabs_equal_the_whole(cuts: list[int]) -> None:
    soft = smooth_predictions((24, 30, 34), 3, 3, seed=1)
    whole = fuse(soft, Reading.RELEASED)
    fuser = ReleasedFuser()
    parts = []
    start = 0
    for slices in cuts:
        parts.append(fuser.push(soft[:, :, start : start + slices]))
        start += slices
        assert sum(part.slices for part in parts) == max(0, start - 4)
    parts.append(fuser.finish())
    joined = Fused.concatenated(parts)
    assert (joined.attention == whole.attention).all()
    assert (joined.mean == whole.mean).all()
    assert (joined.label == whole.label).all()
