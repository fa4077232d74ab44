"""Fig. 8: Dice between every two sources of a label: architectures, annotators, the truth.

Pure functions: masks of one organ of one case in, a matrix over cases out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from atlas_core.frozen_model import FrozenModel
from atlas_core.overlap import dice
from atlas_models.evaluation import Spread
from numpy.typing import NDArray
from pydantic import Field


class PairDice(FrozenModel):
    """Dice of two sources for one organ of one case."""

    case_id: str
    organ: str
    one: str
    other: str
    dice: float = Field(ge=0, le=1)


class DiceCell(FrozenModel):
    """One cell of the matrix: the same for (one, other) and (other, one)."""

    one: str
    other: str
    organs: dict[str, Spread] = Field(description="Organ → spread over cases.")
    mean: float | None = Field(description="Mean over organs of their means.")
    pairs: int = Field(description="Pairs of masks behind it.")


class DiceMatrix(FrozenModel):
    """Fig. 8a or 8b; the diagonal is left out (1 by definition)."""

    raters: tuple[str, ...] = Field(description="Rows and columns, in order.")
    organs: tuple[str, ...]
    cases: int
    cells: tuple[DiceCell, ...] = Field(description="Above the diagonal.")
    left_out: int = Field(default=0, description="Pairs that were not independent.")

    def cell(self, one: str, other: str) -> DiceCell | None:
        """The cell of two sources, in either order; None where they share no organ."""
        wanted = {one, other}
        return next((cell for cell in self.cells if {cell.one, cell.other} == wanted), None)

    def value(self, one: str, other: str, organ: str | None = None) -> float | None:
        """Mean Dice of two sources: of one organ over cases, or over all organs."""
        cell = self.cell(one, other)
        if cell is None or organ is None:
            return cell.mean if cell else None
        return cell.organs[organ].mean if organ in cell.organs else None


def pair_dice(case_id: str, organ: str, masks: Mapping[str, NDArray[np.bool_]]) -> list[PairDice]:
    """Dice of every two masks; pairs that are both empty are left out.

    Args:
        masks: source → ``[i, j, k]``, all on one grid.
    """
    return [
        PairDice(case_id=case_id, organ=organ, one=one, other=other, dice=overlap)
        for one, other in combinations(masks, 2)
        if (overlap := dice(masks[one], masks[other])) is not None
    ]


def dice_matrix(
    raters: Sequence[str], pairs: Iterable[PairDice], *, left_out: int = 0
) -> DiceMatrix:
    """The matrix over all cases and organs; the order of `pairs` does not matter."""
    found = sorted(pairs, key=lambda pair: (pair.case_id, pair.organ))
    by_cell: dict[frozenset[str], dict[str, list[float]]] = {}
    for pair in found:
        key = frozenset((pair.one, pair.other))
        by_cell.setdefault(key, {}).setdefault(pair.organ, []).append(pair.dice)
    cells = [
        _cell(one, other, by_cell[frozenset((one, other))])
        for place, one in enumerate(raters)
        for other in raters[place + 1 :]
        if frozenset((one, other)) in by_cell
    ]
    return DiceMatrix(
        raters=tuple(raters),
        organs=tuple(sorted({pair.organ for pair in found})),
        cases=len({pair.case_id for pair in found}),
        cells=tuple(cells),
        left_out=left_out,
    )


def _cell(one: str, other: str, organs: Mapping[str, Sequence[float]]) -> DiceCell:
    spreads = {organ: Spread.of(values) for organ, values in sorted(organs.items())}
    means = [spread.mean for spread in spreads.values() if spread.mean is not None]
    return DiceCell(
        one=one,
        other=other,
        organs=spreads,
        mean=float(np.mean(means)) if means else None,
        pairs=sum(len(values) for values in organs.values()),
    )
