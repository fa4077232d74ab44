"""The claim of Fig. 4: the top of the priority list holds most of the true error.

Pure functions: attention and true error of every case in, shares of the error out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from atlas_core.errors import InvalidInput
from atlas_core.frozen_model import FrozenModel
from numpy.typing import NDArray
from pydantic import Field

from atlas_flows.scoring.priority_list import TOP_SHARE, cases_in

SHARES: Final = tuple(percent / 100 for percent in range(1, 21))
"""Parts of the list that the curve shows; the paper revises the top 5 % (§3.2 ⑤)."""

DRAWS: Final = 2000
"""Random orders of the list that the interval is taken from: its ends move by less than 1 % of the
error from seed to seed."""

INTERVAL: Final = (0.025, 0.975)

_DRAWS_AT_ONCE: Final = 100
"""Of 8,448 cases: 7 MB of random numbers at a time."""


class ErrorOfCase(FrozenModel):
    """Attention size and true error of one case."""

    case_id: str
    attention_ml: float = Field(ge=0)
    wrong_ml: float = Field(ge=0, description="Voxels where pseudo label and truth differ.")
    dice_error: float = Field(ge=0, le=1, description="1 − mean Dice over the organs that count.")


class ErrorShare(FrozenModel):
    """How much of all true error lies in the first cases of the list."""

    share: float = Field(description="Part of the list.")
    cases: int = Field(description="Cases in it, rounded up.")
    found: float = Field(description="Their part of all true error.")
    by_chance: float = Field(description="Expected of as many random cases.")
    chance_low: float = Field(description="2.5 % of random choices find less.")
    chance_high: float = Field(description="2.5 % of random choices find more.")
    as_good_by_chance: float = Field(description="Part of random choices that find as much.")
    at_best: float = Field(description="The same for the cases with the largest error.")


class ErrorFound(FrozenModel):
    """The curve over the shares, for both measures of error; 0 where nothing is wrong."""

    cases: int
    total_wrong_ml: float
    mean_dice_error: float
    by_volume: tuple[ErrorShare, ...] = Field(description="Error in millilitres.")
    by_dice: tuple[ErrorShare, ...] = Field(description="Error as 1 − mean Dice.")

    def top(self, share: float = TOP_SHARE, *, by: str = "volume") -> ErrorShare:
        """The point of one share (`by`: "volume" or "dice").

        Raises:
            InvalidInput: the curve has no such point.
        """
        curve = self.by_volume if by == "volume" else self.by_dice
        for point in curve:
            if abs(point.share - share) < 1e-9:
                return point
        raise InvalidInput(
            "no such share on the curve", expected=[point.share for point in curve], got=share
        )


def measure_error_found(
    cases: Sequence[ErrorOfCase], shares: Sequence[float] = SHARES, *, seed: int = 0
) -> ErrorFound:
    """How much of all error lies in the top of the list by attention, against chance.

    The list is in falling order of attention size, equal ones by case id. The interval comes from
    random orders of the same cases with `seed`: the same input gives the same result.

    Raises:
        InvalidInput: no case.
    """
    if not cases:
        raise InvalidInput("no case to evaluate", expected="scored cases with a known truth")
    ranked = sorted(cases, key=lambda case: (-case.attention_ml, case.case_id))
    wrong = np.array([case.wrong_ml for case in ranked])
    dice = np.array([case.dice_error for case in ranked])
    return ErrorFound(
        cases=len(ranked),
        total_wrong_ml=float(wrong.sum()),
        mean_dice_error=float(dice.mean()),
        by_volume=tuple(_curve(wrong, shares, seed)),
        by_dice=tuple(_curve(dice, shares, seed)),
    )


def _curve(errors: NDArray[np.float64], shares: Sequence[float], seed: int) -> Iterator[ErrorShare]:
    total = float(errors.sum())
    part = errors / total if total else errors
    counts = [cases_in(share, len(errors)) for share in shares]
    found = np.cumsum(part)
    best = np.cumsum(np.sort(part)[::-1])
    drawn = _random_sums(part, counts, seed)
    for column, (share, count) in enumerate(zip(shares, counts, strict=True)):
        random = drawn[:, column]
        low, high = np.quantile(random, INTERVAL)
        yield ErrorShare(
            share=share,
            cases=count,
            found=min(1.0, float(found[count - 1])),
            by_chance=count / len(errors) if total else 0.0,
            chance_low=float(low),
            chance_high=min(1.0, float(high)),
            as_good_by_chance=float(np.mean(random >= found[count - 1] - 1e-12)),
            at_best=min(1.0, float(best[count - 1])),
        )


def _random_sums(
    errors: NDArray[np.float64], counts: Sequence[int], seed: int
) -> NDArray[np.float64]:
    """Sum of the first n errors of random orders: ``[draw, n of counts]``."""
    random = np.random.default_rng(seed)
    places = np.array(counts) - 1
    sums = np.empty((DRAWS, len(counts)))
    for first in range(0, DRAWS, _DRAWS_AT_ONCE):
        orders = random.permuted(np.broadcast_to(errors, (_DRAWS_AT_ONCE, len(errors))), axis=1)
        sums[first : first + _DRAWS_AT_ONCE] = np.cumsum(orders, axis=1)[:, places]
    return sums
