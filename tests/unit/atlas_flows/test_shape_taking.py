"""Clicks and strokes of a person who takes shapes, and of one who draws."""

from __future__ import annotations

import numpy as np
from atlas_flows.demos.shape_taking import Effort, drawing, take_best_shapes


def test_a_shape_is_taken_only_where_it_is_nearer_to_the_truth() -> None:
    true = np.zeros((8, 8, 4), np.bool_)
    true[1:4, 1:4, 1:3] = true[6, 6, 0] = True
    drawn = np.zeros_like(true)
    drawn[6, 6, 0] = True
    nothing, right = np.zeros_like(true), true.copy()
    boxes = [((0, 0, 0), (4, 4, 3)), ((5, 5, 0), (7, 7, 0))]
    taken, clicks = take_best_shapes(drawn, true, [nothing, right], boxes)
    assert np.array_equal(taken, true)
    assert clicks == 1 + 3 + 1, "to both regions; through two shapes and take, in the first one"
    assert not drawn[2, 2, 1], "what was drawn is left alone"
    assert take_best_shapes(drawn, true, [], boxes)[1] == 2


def test_each_wrong_piece_of_a_slice_is_a_stroke() -> None:
    true = np.zeros((8, 8, 3), np.bool_)
    drawn = true.copy()
    drawn[1, 1, 0] = drawn[5, 5, 0] = drawn[3:5, 3, 2] = True
    assert drawing(drawn, true) == (2, 3)
    assert drawing(true, true) == (0, 0)
    assert Effort().plus(2, 3) == Effort(clicks=2, strokes=3, seconds=34.0)
