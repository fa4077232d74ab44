"""How much work a label is by clicks and strokes, with and without taking shapes from members.

A person goes to a region, cycles through the shapes of the organ, takes the best one there, and
draws what is left slice by slice. The seconds are assumptions, the same ones on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from atlas_core.frozen_model import FrozenModel
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

Mask = NDArray[np.bool_]
"""One organ on the CT's grid, ``[i, j, k]``."""

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First and last voxel, both included."""

SECONDS_PER_CLICK: Final = 2.0
"""A key or a click, with the thought before it (keystroke-level model: 1.35 s and 0.28 s)."""

SECONDS_PER_STROKE: Final = 10.0
"""An outline drawn around one wrong piece of one slice."""

SLICES: Final = 2
"""Axis of the file along which slices are drawn."""


class Effort(FrozenModel):
    """What the work on labels costs a person."""

    clicks: int = Field(default=0, description="Keys and clicks: to regions, shapes, slices.")
    strokes: int = Field(default=0, description="Outlines of wrong pieces, slice by slice.")
    seconds: float = Field(default=0.0, description="At 2 s a click and 10 s a stroke.")

    def plus(self, clicks: int, strokes: int) -> Effort:
        """With more of both."""
        seconds = self.seconds + SECONDS_PER_CLICK * clicks + SECONDS_PER_STROKE * strokes
        return Effort(clicks=self.clicks + clicks, strokes=self.strokes + strokes, seconds=seconds)


def take_best_shapes(
    drawn: Mask, true: Mask, shapes: Sequence[Mask], boxes: Sequence[Box]
) -> tuple[Mask, int]:
    """Take, in each region, the shape that is nearest to the truth, if it is nearer than what is
    drawn.

    Args:
        shapes: in the order in which the page shows them.
        boxes: of the regions, largest first.

    Returns:
        What is drawn then, and the clicks: to each region (j), through the shapes (h), to take (u).
    """
    drawn, clicks = drawn.copy(), 0
    for first, last in boxes:
        box = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
        wrong = np.count_nonzero(drawn[box] != true[box])
        wrongs = [int(np.count_nonzero(shape[box] != true[box])) for shape in shapes]
        clicks += 1
        if not wrongs or min(wrongs) >= wrong:
            continue
        best = wrongs.index(min(wrongs))
        drawn[box] = shapes[best][box]
        clicks += best + 2
    return drawn, clicks


def drawing(drawn: Mask, true: Mask) -> tuple[int, int]:
    """Clicks (to each wrong slice) and strokes (one for each wrong piece of it) to the truth."""
    wrong = drawn != true
    slices = np.flatnonzero(wrong.any(axis=(0, 1)))
    pieces = [ndimage.label(np.take(wrong, at, axis=SLICES))[1] for at in slices]
    return len(slices), int(sum(pieces))
