"""Laws of fusion that hold for any soft predictions."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
from atlas_attention.fusion import ATTENTION_SCALE, HALF_BYTE, Fused, fuse, open_fuser
from atlas_attention.fusion.opened import open_attention
from atlas_core.records import Reading
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

READINGS = st.sampled_from(list(Reading))
SHAPES = array_shapes(min_dims=5, max_dims=5, min_side=1, max_side=7)
BYTES = st.one_of(st.integers(0, 255), st.sampled_from([0, 127, 128, 255]))
BYTE_FILL = st.sampled_from([0, 94, 255])
SOFT = SHAPES.flatmap(lambda shape: arrays(np.uint8, shape, elements=BYTES, fill=BYTE_FILL))
FILL = st.sampled_from([0.0, 0.3, 1.0])
PROBABILITIES = SHAPES.flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(0, 1), fill=FILL)
)


def same(one: Fused, other: Fused) -> bool:
    return (
        np.array_equal(one.attention, other.attention)
        and np.array_equal(one.mean, other.mean)
        and np.array_equal(one.label, other.label)
    )


@given(SOFT, READINGS, st.randoms(use_true_random=False))
def test_order_of_models_does_not_matter(
    soft: NDArray[np.uint8], reading: Reading, random: Random
) -> None:
    order = random.sample(range(len(soft)), len(soft))
    assert same(fuse(soft[order], reading), fuse(soft, reading))


@given(SOFT, READINGS)
def test_order_of_organs_only_renames(soft: NDArray[np.uint8], reading: Reading) -> None:
    fused = fuse(soft, reading)
    turned = fuse(soft[:, ::-1], reading)
    assert (turned.attention == fused.attention[::-1]).all()
    assert (turned.mean == fused.mean[::-1]).all()
    assert ((turned.label > 0) == (fused.label > 0)).all()


@given(SOFT, READINGS, st.sets(st.integers(0, 7)), st.integers(1, 3))
def test_cuts_along_z_and_threads_do_not_matter(
    soft: NDArray[np.uint8], reading: Reading, cuts: set[int], threads: int
) -> None:
    fuser = open_fuser(reading, threads=threads)
    edges = [0, *sorted(c for c in cuts if c < soft.shape[2]), soft.shape[2]]
    parts = [fuser.push(soft[:, :, a:b]) for a, b in pairwise(edges)]
    assert same(Fused.concatenated([*parts, fuser.finish()]), fuse(soft, reading))


@given(SOFT, READINGS, st.integers(0, 255))
def test_memory_that_is_used_again_leaves_no_trace(
    soft: NDArray[np.uint8], reading: Reading, before: int
) -> None:
    shape = soft.shape[1:]
    used = Fused(*(np.full(s, before, np.uint8) for s in (shape, shape, shape[1:])))
    fused = fuse(soft, reading, out=used)
    assert fused.attention is used.attention and fused.label is used.label
    assert same(fused, fuse(soft, reading))


@given(SOFT, READINGS, st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_flips_commute_with_fusion(
    soft: NDArray[np.uint8], reading: Reading, steps: tuple[int, int, int]
) -> None:
    turn = tuple(slice(None, None, step) for step in steps)
    fused = fuse(soft, reading)
    turned = Fused(fused.attention[:, *turn], fused.mean[:, *turn], fused.label[turn])
    assert same(fuse(soft[:, :, *turn], reading), turned)


@given(SOFT.map(lambda soft: soft[:1]), st.integers(1, 16))
def test_identical_models_have_no_inconsistency(soft: NDArray[np.uint8], models: int) -> None:
    """What remains is uncertainty and overlap; certain predictions have neither, unless they
    meet."""
    p = soft[0] / 255.0
    uncertainty = -p * np.log(np.where(p > 0, p, 1))
    sure = soft[0] >= HALF_BYTE
    expected = uncertainty + (sure & (sure.sum(axis=0) > 1))
    fused = fuse(np.repeat(soft, models, axis=0))
    assert np.abs(fused.attention * ATTENTION_SCALE - expected).max() <= 0.55 * ATTENTION_SCALE
    assert (fused.mean == soft[0]).all()
    certain = np.where(sure, 255, 0).astype(np.uint8)
    certain[1:] = 0
    assert not fuse(np.repeat(certain[None], models, axis=0)).attention.any()


@given(PROBABILITIES)
@settings(max_examples=200)
def test_rounding_to_bytes_costs_no_more_than_stated(p: NDArray[np.float64]) -> None:
    """From probabilities to dequantised attention, wherever no prediction is within 1/510 of
    1/2."""
    soft = np.rint(255 * p).astype(np.uint8)
    sure = (p > 0.5).any(axis=0)
    exact = p.std(axis=0) - (p * np.log(np.where(p > 0, p, 1))).mean(axis=0)
    exact += sure & (sure.sum(axis=0) > 1)
    clear = (np.abs(p - 0.5) > 1 / 510).all(axis=(0, 1))
    apart = np.abs(fuse(soft).attention * ATTENTION_SCALE - exact)
    output = (0.5 + (len(p) / 2 + 1.01) / 256) * ATTENTION_SCALE
    assert apart[:, clear].max(initial=0) <= 0.0143 + output


@given(SOFT)
def test_released_keeps_a_part_of_the_terms(soft: NDArray[np.uint8]) -> None:
    """Attention of reading `released` is nowhere above that of reading `paper`: its overlap is
    rarer."""
    assert (fuse(soft, Reading.RELEASED).attention <= fuse(soft).attention).all()


@given(SOFT)
def test_opened_leaves_what_three_voxels_hold(soft: NDArray[np.uint8]) -> None:
    """Nowhere above reading `paper`, of which mean and label are; opened again, it stays."""
    fused, paper = fuse(soft, Reading.OPENED), fuse(soft)
    assert (fused.attention <= paper.attention).all()
    assert np.array_equal(fused.mean, paper.mean) and np.array_equal(fused.label, paper.label)
    again = fused.attention.copy()
    open_attention(again)
    assert np.array_equal(again, fused.attention)


@given(SOFT, READINGS)
def test_label_is_the_mean_above_one_half(soft: NDArray[np.uint8], reading: Reading) -> None:
    fused = fuse(soft, reading)
    assert ((fused.label > 0) == (fused.mean >= HALF_BYTE).any(axis=0)).all()
    chosen = np.take_along_axis(fused.mean, np.maximum(fused.label, 1)[None].astype(int) - 1, 0)[0]
    assert (chosen == fused.mean.max(axis=0))[fused.label > 0].all()
