"""Augmentation `full` and patches about organs, by the laws that they must keep."""

from __future__ import annotations

import numpy as np
import pytest
from atlas_models.training import PatchSampler, TrainingCase
from atlas_models.training.augmentation import augmentation
from atlas_models.training.patches import AIR_HU
from numpy.typing import NDArray
from tiny_training import CASES, tiny_config

FULL = tiny_config(augmentation="full", patch=(32, 24, 16))
SHAPE = FULL.patch[::-1]
DRAWS = 60

Patch = tuple[NDArray[np.float32], NDArray[np.float32]]


def blocks() -> Patch:
    """Two blocks of soft tissue in air: bright where the first organ is, dark where the second."""
    target = np.zeros((2, *SHAPE), np.float32)
    target[0, 3:10, 4:12, 5:15] = 1.0
    target[1, 6:14, 14:22, 18:28] = 1.0
    return (AIR_HU + 1200.0 * target[0] + 1060.0 * target[1]).astype(np.float32), target


def changed(seed: int, patch: Patch | None = None) -> Patch:
    hu, target = blocks() if patch is None else patch
    return augmentation(FULL)(hu.copy(), target.copy(), np.random.default_rng(seed))


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_labels_move_with_the_image() -> None:
    _, before = blocks()
    moved = 0
    for seed in range(DRAWS):
        hu, target = changed(seed)
        tissue = hu > AIR_HU + 530.0  # half of the darker organ: blur moves no border past it
        assert overlap(tissue, target.sum(axis=0) > 0.5) > 0.9
        first, second = (hu[target[channel] > 0.9] for channel in (0, 1))
        assert first.mean() > second.mean() + 50.0  # each label stayed on its own organ
        moved += not np.array_equal(target, before)
    # About as often as configured (0.3), and neither always nor never.
    assert 0.1 * DRAWS < moved < 0.6 * DRAWS


def test_left_stays_left() -> None:
    """No mirroring: left and right kidney are different organs."""
    for seed in range(DRAWS):
        _, target = changed(seed)
        places = [np.argwhere(target[channel] > 0.5).mean(axis=0) for channel in (0, 1)]
        assert (places[0][1:] < places[1][1:]).all()  # along y and x


def test_values_stay_in_range() -> None:
    for seed in range(DRAWS):
        hu, target = changed(seed)
        assert (hu.dtype, target.dtype) == (np.float32, np.float32)
        assert (hu.shape, target.shape) == (SHAPE, (2, *SHAPE))
        assert np.isfinite(hu).all()
        assert 0.0 <= target.min() <= target.max() <= 1.0
        # Ten per cent of gain, 15 HU of offset, and noise of 15 HU.
        assert hu.min() > AIR_HU - 120.0
        assert hu.max() < AIR_HU + 1.1 * 1200.0 + 120.0


def test_what_a_turned_patch_lacks_is_air() -> None:
    """Not water: HU 0 at the rim would look like tissue."""
    full = np.full(SHAPE, 40.0, np.float32), np.ones((2, *SHAPE), np.float32)
    rims = 0
    for seed in range(DRAWS):
        hu, target = changed(seed, full)
        outside = target[0] == 0.0
        if outside.any():
            rims += 1
            assert hu[outside].mean() < AIR_HU + 400.0
    assert rims > 3


def test_a_seed_decides_everything() -> None:
    for seed in range(10):
        one, again = changed(seed), changed(seed)
        assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert len({changed(seed)[0].tobytes() for seed in range(10)}) == 10


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_foreground_share_is_reached(share: float) -> None:
    """A tiny organ in a large volume, which a patch at random hardly ever meets."""
    target = np.zeros((1, 60, 60, 60), np.uint8)
    target[0, 50:53, 6:9, 30:33] = 255
    ct = np.zeros(target.shape[1:], np.float32)
    case = TrainingCase(ct, target, np.ones(1, np.float32))

    def unchanged(hu: NDArray[np.float32], t: NDArray[np.float32], _: object) -> Patch:
        return hu, t

    sampler = PatchSampler([case], (8, 8, 8), 0, augment=unchanged, foreground_share=share)
    drawn = 400
    hits = sum(bool(sampler.draw(n, 1).target.any()) for n in range(drawn))
    by_chance = 0.02  # of the places that a window of 8 can take, those that touch the organ
    assert hits / drawn == pytest.approx(share + (1 - share) * by_chance, abs=0.06)
    if share == 1.0:
        assert hits == drawn


def test_a_short_patch_is_a_run_of_slices_between_air() -> None:
    """As a scan of few slices is served: what is shown is untouched, the rest is air."""
    rng = np.random.Generator(np.random.PCG64(3))
    ct = rng.integers(-900, 900, (32, 32, 32)).astype(np.float32)
    case = TrainingCase(ct, np.full((1, *ct.shape), 255, np.uint8), np.ones(1, np.float32))

    def unchanged(hu: NDArray[np.float32], t: NDArray[np.float32], _: object) -> Patch:
        return hu, t

    whole = PatchSampler([case], (32, 32, 32), 0, augment=unchanged).draw(0, 1)
    sampler = PatchSampler([case], (32, 32, 32), 0, augment=unchanged, short_share=0.5)
    lengths = set()
    for number in range(200):
        batch = sampler.draw(number, 1)
        shown = np.flatnonzero((batch.hu[0, 0] != AIR_HU).all(axis=(1, 2)))
        kept = slice(shown[0], shown[-1] + 1)
        assert len(shown) == kept.stop - kept.start
        assert np.array_equal(batch.hu[0, 0, kept], whole.hu[0, 0, kept])
        assert np.array_equal(batch.target[0, 0].all(axis=(1, 2)), batch.target[0, 0, :, 0, 0] > 0)
        assert batch.target[0, 0, kept].all()
        assert batch.target.sum() == len(shown) * 32 * 32
        lengths.add(len(shown))
    assert lengths == {*range(6, 17), 32}
    low = TrainingCase(ct[:4], case.target[:, :4], case.weight)
    batch = PatchSampler([low], (32, 32, 4), 0, augment=unchanged, short_share=1.0).draw(0, 8)
    assert (batch.hu[:, 0] == ct[:4]).all(), "fewer slices than the shortest run are all shown"


@pytest.mark.parametrize("slices", [5, 20])
def test_beyond_a_short_volume_the_edge_goes_on(slices: int) -> None:
    """In the CT and in what is taught, so that the network is not told that organs end there."""
    rng = np.random.Generator(np.random.PCG64(4))
    ct = rng.integers(-900, 900, (slices, 16, 16)).astype(np.float32)
    target = rng.integers(0, 256, (1, *ct.shape)).astype(np.uint8)
    case = TrainingCase(ct, target, np.ones(1, np.float32))

    def unchanged(hu: NDArray[np.float32], t: NDArray[np.float32], _: object) -> Patch:
        return hu, t

    sampler = PatchSampler([case], (16, 16, 12), 0, augment=unchanged, padding_hu="edge")
    for number in range(20):
        batch = sampler.draw(number, 1)
        hu, taught = batch.hu[0, 0], batch.target[0, 0]
        shown = [np.flatnonzero((ct == plane).all(axis=(1, 2))) for plane in hu]
        assert all(len(found) == 1 for found in shown), "every plane is one of the volume's"
        at = np.concatenate(shown)
        assert set(np.diff(at)) <= {0, 1}
        assert (set(np.diff(at)) == {1}) == (slices == 20)
        assert np.array_equal(taught, target[0, at] / np.float32(255.0))


def test_small_organs_are_met_as_often_as_large_ones() -> None:
    target = np.zeros((2, 60, 60, 60), np.uint8)
    target[0, 2:30, 2:58, 2:58] = 255
    target[1, 55:57, 55:57, 55:57] = 255
    case = TrainingCase(np.zeros(target.shape[1:], np.float32), target, np.ones(2, np.float32))
    sampler = PatchSampler([case], (8, 8, 8), 0, foreground_share=1.0)
    small = sum(bool(sampler.draw(n, 1).target[0, 1].any()) for n in range(300))
    assert 0.4 < small / 300 < 0.65


def test_an_organ_without_a_label_draws_no_patches() -> None:
    unlabelled = [TrainingCase(c.ct, c.target, np.zeros(2, np.float32), id=c.id) for c in CASES[:1]]
    batch = PatchSampler(unlabelled, (8, 8, 8), 0, foreground_share=1.0).draw(0, 4)
    assert batch.hu.shape == (4, 1, 8, 8, 8)
