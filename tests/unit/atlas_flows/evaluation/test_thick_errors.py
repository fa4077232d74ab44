"""Attention beside the pseudo label's border: laws, and areas against a definition by pairs."""

from __future__ import annotations

import numpy as np
import pytest
from atlas_flows.evaluation.attention_regions import RegionRule
from atlas_flows.evaluation.thick_errors import (
    LevelCounts,
    beside_border,
    border_of,
    compare,
    thick_errors,
)

SPACING = (2.0, 2.0, 3.0)


def organ() -> tuple[np.ndarray, np.ndarray]:
    """A label that is one voxel too thin on one side (a shell), and lacks a corner (thick)."""
    truth = np.zeros((24, 24, 16), np.bool_)
    truth[6:18, 6:18, 4:12] = True
    pseudo = truth.copy()
    pseudo[6] = False
    pseudo[12:18, 12:18, 6:12] = False
    return pseudo, truth


def test_areas_are_those_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    score = random.integers(0, 9, 300).astype(np.uint8)
    thick = random.random(300) < 0.2 + score / 20
    counts = LevelCounts.of(score, thick, ~thick)
    one, other = score[thick][:, None].astype(int), score[~thick][None].astype(int)
    assert counts.auroc() == pytest.approx(((one > other) + 0.5 * (one == other)).mean())
    precision = [thick[score >= level].mean() for level in score[thick]]
    assert counts.average_precision() == pytest.approx(np.mean(precision))
    halves = [LevelCounts.of(score[p], thick[p], ~thick[p]) for p in (slice(150), slice(150, 300))]
    assert (halves[0] + halves[1]).auroc() == counts.auroc()


def test_attention_to_the_thick_error_beats_the_border() -> None:
    pseudo, truth = organ()
    attention = np.zeros(truth.shape, np.uint8)
    attention[12:18, 12:18, 6:12] = 100
    found = compare(pseudo, truth, attention, SPACING, RegionRule(), 28)
    beside = beside_border([found])
    by_attention, by_border = beside.thick.scores
    assert (by_attention.auroc, by_attention.average_precision) == (1.0, 1.0)
    assert by_border.auroc is not None and by_border.auroc < 0.9
    one_voxel, _, half = beside.shares
    # The border meets the error in a voxel, but marks next to nothing of it.
    assert one_voxel.precision == half.precision == 1.0
    assert one_voxel.border_precision == 0.0 or half.border_precision == 0.0


def test_a_shell_is_not_thick() -> None:
    truth = np.zeros((12, 12, 12), np.bool_)
    truth[3:9, 3:9, 3:9] = True
    pseudo = truth.copy()
    pseudo[3] = False
    found = compare(pseudo, truth, np.zeros(truth.shape, np.uint8), SPACING, RegionRule(), 28)
    assert thick_errors([found.scored]).thick_share == 0.0
    assert thick_errors([found.scored]).scores[0].auroc is None


def test_an_organ_that_was_missed_has_no_border() -> None:
    truth = np.zeros((12, 12, 12), np.bool_)
    truth[3:9, 3:9, 3:9] = True
    nothing = np.zeros_like(truth)
    found = compare(nothing, truth, np.full(truth.shape, 50, np.uint8), SPACING, RegionRule(), 28)
    assert not border_of(nothing).any()
    by_attention, by_border = thick_errors([found.scored]).scores
    assert by_attention.auroc == by_border.auroc == 0.5


def test_neither_truth_nor_label() -> None:
    nothing = np.zeros((8, 8, 8), np.bool_)
    found = compare(nothing, nothing, nothing.astype(np.uint8), SPACING, RegionRule(), 28)
    assert thick_errors([found.scored]).thick_share is None
