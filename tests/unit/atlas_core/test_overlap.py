"""The Dice coefficient of two masks."""

from __future__ import annotations

import doctest

import atlas_core.overlap
import numpy as np
import pytest
from atlas_core.errors import GridMismatch
from atlas_core.overlap import dice


def mask(*voxels: int) -> np.ndarray:
    row = np.zeros((4, 1, 1), np.bool_)
    row[list(voxels)] = True
    return row


def test_the_doctests_hold() -> None:
    assert doctest.testmod(atlas_core.overlap).failed == 0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (mask(0, 1), mask(0, 1), 1.0),
        (mask(0, 1), mask(2, 3), 0.0),
        (mask(0, 1), mask(), 0.0),
        (mask(0, 1, 2), mask(2), 0.5),
        (mask(), mask(), None),
    ],
)
def test_dice_is_symmetric(one: np.ndarray, other: np.ndarray, expected: float | None) -> None:
    assert dice(one, other) == expected
    assert dice(other, one) == expected


def test_masks_of_different_shapes_are_refused() -> None:
    with pytest.raises(GridMismatch, match="different shapes"):
        dice(mask(0), np.ones((1, 1, 1), np.bool_))
