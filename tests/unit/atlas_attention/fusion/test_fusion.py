"""Reading `paper` against a plain NumPy float64 reference, and the refusals."""

from __future__ import annotations

import numpy as np
import pytest
from atlas_attention.fusion import (
    ATTENTION_LEVELS,
    ATTENTION_SCALE,
    MAX_MODELS,
    MAX_ORGANS,
    UNIT,
    Fused,
    entropy_terms,
    fuse,
    open_fuser,
)
from atlas_core.errors import InvalidInput, LimitExceeded
from atlas_core.records import Reading
from numpy.typing import NDArray


def attention_of(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eq. 1–4 to the letter for p ``[model, organ, …]``, in float64."""
    inconsistency = p.std(axis=0)
    uncertainty = -(p * np.log(np.where(p > 0, p, 1))).mean(axis=0)
    sure = (p > 0.5).any(axis=0)
    overlap = sure & (sure.sum(axis=0) > 1)
    return np.asarray(inconsistency + uncertainty + overlap)


def rounding_bound(models: int) -> float:
    """Largest distance of an attention byte from the unrounded value, in bytes (see `fusion`)."""
    return 0.5 + (models / 2 + 1.01) / 256


def soft_predictions(models: int, organs: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes with all relevant cases: runs of zeros, ones, and values around a half."""
    rng = np.random.default_rng(seed)
    soft = rng.integers(0, 256, (models, organs, 3, 61, 131), dtype=np.uint8)
    soft[rng.random(soft.shape) < 0.2] = 0
    soft[rng.random(soft.shape) < 0.1] = 255
    near_half = rng.random(soft.shape) < 0.2
    soft[near_half] = rng.integers(126, 130, int(near_half.sum()))
    soft[:, :, 0] = 0
    soft[:, organs // 2, 1, 5:] = 0
    return soft


@pytest.mark.parametrize(
    "models, organs", [(1, 1), (1, 9), (2, 3), (3, 9), (5, 4), (16, 2), (3, 64), (2, 255)]
)
def test_equals_the_equations_up_to_the_stated_rounding(models: int, organs: int) -> None:
    soft = soft_predictions(models, organs)
    fused = fuse(soft)
    exact = attention_of(soft / 255.0) * ATTENTION_LEVELS
    assert np.abs(fused.attention - exact).max() <= rounding_bound(models)
    total = soft.astype(np.int64).sum(axis=0)
    assert (fused.mean == np.ceil((2 * total - models) / (2 * models))).all()
    above = np.where(2 * total > 255 * models, total, 0)
    assert (fused.label == np.where(above.any(axis=0), above.argmax(axis=0) + 1, 0)).all()


def test_mean_and_label_are_exact_for_every_sum() -> None:
    """Every Σv that up to 16 models can reach: the division by multiplication is never off."""
    for models in range(1, MAX_MODELS + 1):
        total = np.arange(255 * models + 1)
        soft = np.stack([total // models + (n < total % models) for n in range(models)])
        fused = fuse(soft.astype(np.uint8).reshape(models, 1, 1, 1, -1))
        assert (fused.mean.ravel() == np.ceil((2 * total - models) / (2 * models))).all()
        assert (fused.label.ravel() == (2 * total > 255 * models)).all()
        assert ((fused.mean >= 128) == (fused.label > 0)).all()


def test_the_scale_fits_the_byte_and_no_larger_one_does() -> None:
    largest = 0.5 + 1 / np.e + 1
    assert ATTENTION_LEVELS * largest < 255 < (ATTENTION_LEVELS + 1) * largest
    assert pytest.approx(1 / ATTENTION_LEVELS) == ATTENTION_SCALE
    assert largest * UNIT + MAX_MODELS / 2 + 128 < 1 << 16  # what the 16-bit sums must hold


def test_entropy_terms_are_eq_2_with_zero_at_both_ends() -> None:
    terms = entropy_terms(1, 1 << 20)
    assert terms[0] == terms[255] == 0
    assert terms[94] == terms.max()  # 94 / 255 is nearest to 1 / e
    assert terms[128] == round(-(128 / 255) * np.log(128 / 255) * (1 << 20))


def test_overlap_needs_two_organs_above_one_half_by_any_models() -> None:
    soft = np.zeros((2, 3, 1, 1, 4), np.uint8)
    soft[0, 0] = 255  # one model is sure of the first organ everywhere
    soft[1, 1, ..., 1] = 128  # another of a second one: just above one half
    soft[1, 1, ..., 2] = 127  # just below
    soft[1, 0, ..., 3] = 255  # of the same organ: no overlap
    sure = 1.0 * ATTENTION_LEVELS
    attention = fuse(soft).attention[:, 0, 0].astype(int)
    assert (attention[0] >= sure).tolist() == [False, True, False, False]
    assert (attention[1] >= sure).tolist() == [False, True, False, False]
    assert not attention[2].any()


def test_ties_go_to_the_lower_channel() -> None:
    soft = np.full((3, 4, 1, 2, 2), 200, np.uint8)
    soft[:, 0] = 100
    assert (fuse(soft).label == 2).all()


def test_no_slices_fuse_to_no_slices() -> None:
    fused = fuse(np.zeros((2, 3, 0, 5, 7), np.uint8))
    assert fused.attention.shape == (3, 0, 5, 7) and fused.label.shape == (0, 5, 7)


def test_a_strided_view_fuses_like_its_copy() -> None:
    soft = soft_predictions(3, 4)
    view = soft[:, ::-1, :, ::2, 1:]
    expected = fuse(view.copy())
    assert (fuse(view).attention == expected.attention).all()


def test_arguments_are_not_changed() -> None:
    for reading in Reading:
        soft = soft_predictions(3, 4)
        before = soft.copy()
        fuse(soft, reading)
        assert (soft == before).all()


@pytest.mark.parametrize(
    "soft",
    [
        np.zeros((3, 9, 4, 4), np.uint8),
        np.zeros((3, 9, 4, 4, 4)),
        np.zeros((0, 9, 4, 4, 4), np.uint8),
    ],
)
def test_refuses_malformed_soft_predictions(soft: NDArray[np.uint8]) -> None:
    for reading in Reading:
        with pytest.raises(InvalidInput, match="wrong form"):
            fuse(soft, reading)
        with pytest.raises(InvalidInput, match="wrong form"):
            open_fuser(reading).push(soft)


@pytest.mark.parametrize("reading", list(Reading))
def test_refuses_memory_that_does_not_fit(reading: Reading) -> None:
    soft = soft_predictions(2, 3)
    fits = fuse(soft)
    for out in (
        Fused(fits.attention[:2], fits.mean, fits.label),
        Fused(fits.attention, fits.mean.astype(np.int16), fits.label),
        Fused(fits.attention, fits.mean, fits.label[:, ::-1]),
    ):
        with pytest.raises(InvalidInput, match="does not fit"):
            fuse(soft, reading, out=out)


def test_memory_of_a_large_volume_is_reused() -> None:
    """Larger than a tile, empty where the last volume was not, and the other way round."""
    first = soft_predictions(3, 4)
    second = np.zeros_like(first)
    second[:, 2, 2, 4:9] = 201
    for reading in Reading:
        out = fuse(first, reading)
        for soft in (second, first, np.zeros_like(first), second):
            out = fuse(soft, reading, out=out)
            expected = fuse(soft, reading)
            assert (out.attention == expected.attention).all()
            assert (out.mean == expected.mean).all() and (out.label == expected.label).all()


def test_refuses_more_models_and_organs_than_the_kernels_support() -> None:
    with pytest.raises(LimitExceeded, match="too many models"):
        fuse(np.zeros((MAX_MODELS + 1, 1, 1, 1, 1), np.uint8))
    with pytest.raises(LimitExceeded, match="too many organs"):
        fuse(np.zeros((1, MAX_ORGANS + 1, 1, 1, 1), np.uint8))


@pytest.mark.parametrize("reading", list(Reading))
def test_a_stream_refuses_a_slab_of_another_size(reading: Reading) -> None:
    fuser = open_fuser(reading)
    fuser.push(np.zeros((3, 2, 9, 8, 8), np.uint8))
    for shape in ((2, 2, 9, 8, 8), (3, 3, 9, 8, 8), (3, 2, 9, 7, 8), (3, 2, 9, 8, 9)):
        with pytest.raises(InvalidInput, match="differs from the first"):
            fuser.push(np.zeros(shape, np.uint8))
    rest = Fused.concatenated([fuser.push(np.zeros((3, 2, 1, 8, 8), np.uint8)), fuser.finish()])
    assert rest.label.shape[1:] == (8, 8)


@pytest.mark.parametrize("reading", list(Reading))
def test_an_empty_stream_gives_no_slices(reading: Reading) -> None:
    assert open_fuser(reading).finish().slices == 0
