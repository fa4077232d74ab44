"""Laws of the disagreement of an ensemble, and its counters against NumPy."""

from __future__ import annotations

from itertools import combinations, pairwise
from random import Random

import numpy as np
import pytest
from atlas_attention.fusion import (
    Counts,
    disagreement,
    fuse,
    mean_probability_sum,
    no_counts,
    open_fuser,
)
from atlas_core.records import Reading
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

READINGS = st.sampled_from(list(Reading))
BYTES = st.one_of(st.integers(0, 255), st.sampled_from([0, 127, 128, 255]))
SOFT = array_shapes(min_dims=5, max_dims=5, min_side=1, max_side=7).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=BYTES, fill=st.sampled_from([0, 94, 255]))
)


def counted(soft: NDArray[np.uint8], reading: Reading = Reading.PAPER) -> Counts:
    counts = no_counts(*soft.shape[:2])
    fuse(soft, reading, counts=counts)
    return counts


def of(soft: NDArray[np.uint8]) -> NDArray[np.float64]:
    return disagreement(counted(soft), len(soft))


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    whole = int(a.sum()) + int(b.sum())
    return 1.0 if whole == 0 else 2 * int((a & b).sum()) / whole


def expected(soft: NDArray[np.uint8], organ: int) -> float:
    """As the definition reads, in float64."""
    p = soft[:, organ].astype(np.float64) / 255
    masks = list(p > 0.5)
    if len(masks) > 1:
        return 1 - float(np.mean([dice(a, b) for a, b in combinations(masks, 2)]))
    whole = masks[0].sum() + p[0].sum()
    return 1 - float(2 * p[0][masks[0]].sum() / whole if whole else 1.0)


@settings(deadline=None)  # the first example compiles
@given(SOFT, READINGS)
def test_it_is_what_the_definition_says(soft: NDArray[np.uint8], reading: Reading) -> None:
    counts = counted(soft, reading)
    found = disagreement(counts, len(soft))
    wanted = [expected(soft, organ) for organ in range(soft.shape[1])]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    mean = soft.astype(np.float64).mean(axis=0).sum(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(mean_probability_sum(counts, len(soft)), mean, atol=1e-9)


@pytest.mark.parametrize("models", [1, 2, 3, 5])
def test_counters_do_not_overflow_where_everything_is_certain(models: int) -> None:
    """More voxels than one tile, all at the largest byte, and a rest that fills no word."""
    counts = counted(np.full((models, 1, 3, 97, 101), 255, np.uint8))
    voxels = 3 * 97 * 101
    within = 255 * voxels if models == 1 else voxels
    pairs = [within] * max(1, models * (models - 1) // 2)
    assert counts.tolist() == [[voxels] * models + pairs + [255 * models * voxels]]


@settings(deadline=None)  # the first example compiles
@given(SOFT, READINGS, st.sets(st.integers(0, 7)), st.integers(1, 3))
def test_cuts_along_z_and_threads_do_not_matter(
    soft: NDArray[np.uint8], reading: Reading, cuts: set[int], threads: int
) -> None:
    fuser = open_fuser(reading, threads=threads)
    edges = [0, *sorted(c for c in cuts if c < soft.shape[2]), soft.shape[2]]
    for a, b in pairwise(edges):
        fuser.push(soft[:, :, a:b])
    fuser.finish()
    np.testing.assert_array_equal(fuser.counts, counted(soft))


@settings(deadline=None)  # the first example compiles
@given(SOFT, st.randoms(use_true_random=False))
def test_order_of_models_does_not_matter(soft: NDArray[np.uint8], random: Random) -> None:
    order = random.sample(range(len(soft)), len(soft))
    np.testing.assert_allclose(of(soft[order]), of(soft), atol=1e-12)


@settings(deadline=None)  # the first example compiles
@given(SOFT, st.integers(2, 5))
def test_models_that_say_the_same_do_not_disagree(soft: NDArray[np.uint8], models: int) -> None:
    assert of(np.repeat(soft[:1], models, axis=0)).max() == 0.0


@pytest.mark.parametrize("models", [2, 3, 5])
def test_models_that_share_no_voxel_disagree_entirely(models: int) -> None:
    soft = np.zeros((models, 1, 2, 3, models), np.uint8)
    for n in range(models):
        soft[n, ..., n] = 200
    assert of(soft).tolist() == [1.0]


def test_an_organ_that_one_model_of_three_sees_is_mostly_disagreed_about() -> None:
    soft = np.zeros((3, 2, 4, 4, 4), np.uint8)
    soft[0, 0] = 255
    assert of(soft).tolist() == [pytest.approx(2 / 3), 0.0]


def test_one_model_alone_is_judged_by_how_sure_it_is() -> None:
    sure, unsure = np.zeros((2, 1, 1, 4, 4, 4), np.uint8)
    sure[..., :2] = 255
    unsure[..., :2] = 140
    assert of(sure).tolist() == [0.0]
    assert of(unsure)[0] > 0.2
