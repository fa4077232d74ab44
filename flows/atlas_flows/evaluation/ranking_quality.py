"""How well the priority list finds the cases with the largest true errors.

Pure functions: error of pseudo labels against the truth, and its agreement with every order of the
list (`RankBy`), so that each stands beside the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from atlas_core.errors import InvalidInput
from atlas_core.frozen_model import FrozenModel
from atlas_core.overlap import dice
from atlas_core.records import RankBy, RankedCase
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import rankdata, spearmanr

from atlas_flows.scoring.priority_list import cases_in

TOP_SHARES = (0.05, 0.10)
"""The paper revises the top 5 % (§3.2); 10 % is the second point of the curve."""

HARD_SHARE = 0.10
"""Share of the list in which hard cases are counted."""

HARD_QUANTILE: Final = 0.95
"""A case is hard if its error is above this quantile of the error of ordinary cases: what the
models get wrong, whatever was meant to be difficult."""

DRAWS: Final = 1000
"""Resamples of the cases that intervals are taken from."""

INTERVAL: Final = (0.025, 0.975)


class CaseError(FrozenModel):
    """What one case is ranked by, and its true error."""

    ranked: RankedCase
    kind: str = Field(description="'ordinary', or how the case was meant to be hard.")
    dice: dict[str, float] = Field(
        description="Per organ that counts and is in the truth or in the pseudo label."
    )
    absent: frozenset[str] = Field(
        default=frozenset(), description="Organs of `dice` that the patient does not have."
    )

    @property
    def case_id(self) -> str:
        return self.ranked.case_id

    @property
    def error(self) -> float:
        """1 − mean Dice over the organs that the patient has; 0 without any. An organ that was
        predicted although it is absent is counted apart: one voxel of it would weigh as much as an
        organ that was missed."""
        present = [value for organ, value in self.dice.items() if organ not in self.absent]
        return 1.0 - math.fsum(present) / len(present) if present else 0.0


ORDINARY = "ordinary"
"""Kind of a phantom without a deliberate difficulty."""


class Estimate(FrozenModel):
    """A figure with the interval that holds 95 % of it over resampled cases."""

    value: float
    low: float
    high: float


class TopShare(FrozenModel):
    """What revising the first cases of the list would mend."""

    share: float = Field(description="Part of the list, in (0, 1].")
    cases: int = Field(description="Cases in that part, at least 1.")
    error_share: float = Field(description="Their part of all true error.")
    error_share_by_chance: float = Field(description="The same for cases drawn at random.")
    error_share_at_best: float = Field(description="The same for a list sorted by true error.")


class HardCases(FrozenModel):
    """Hard cases at the top of the list."""

    share: float
    cases: int = Field(description="Cases in that part of the list.")
    hard_total: int
    hard_found: int
    hard_found_by_chance: float = Field(description="Expected among as many random cases.")
    hard_found_at_best: int


class OrderQuality(FrozenModel):
    """One order of the list against the true error."""

    by: RankBy
    spearman: Estimate | None = Field(description="Rank correlation; null where a side is constant")
    spearman_p: float | None
    e_aurc: Estimate | None = Field(
        description="Area under the risk-coverage curve, 0 for a list in the order of the error, 1 "
        "for a random one; null where all errors are equal."
    )
    hard: HardCases
    top: tuple[TopShare, ...]


class RankingEvaluation(FrozenModel):
    """Agreement of the list with true error, in every order that the scores allow."""

    by: RankBy = Field(description="The order of `per_case`.")
    cases: int
    mean_dice: float | None = Field(
        description="1 − mean error: over cases of each case's mean, not over organs."
    )
    mean_dice_ordinary: float | None
    mean_dice_difficult: float | None = Field(description="Of cases that were meant to be hard.")
    hard_above: float = Field(description="Error from which a case is hard; see `HARD_QUANTILE`.")
    absent_predicted: int = Field(description="Organs with a pseudo label that are not there.")
    absent: int = Field(description="Organs that are not there, with or without a pseudo label.")
    orders: tuple[OrderQuality, ...]
    left_out: tuple[RankBy, ...] = Field(description="Orders that some scores have no number for.")
    per_case: tuple[dict[str, Any], ...] = Field(description="First in the list first.")

    def order(self, by: RankBy) -> OrderQuality:
        return next(order for order in self.orders if order.by is by)


def dice_by_organ(
    pseudo: NDArray[np.uint8], truth: Mapping[str, NDArray[np.bool_]], labels: Mapping[str, int]
) -> dict[str, float]:
    """Dice per organ of `labels`.

    Args:
        pseudo: label ids of the prediction, any shape.
        truth: mask per organ on the same grid; an organ that is missing here is absent.
        labels: organ → its id in `pseudo`; the organs to compare.

    Returns:
        Organ → Dice in [0, 1]; organs that are in neither volume are left out.
    """
    result: dict[str, float] = {}
    for organ, label in labels.items():
        predicted = pseudo == label
        true = truth[organ] if organ in truth else np.zeros_like(predicted)
        overlap = dice(predicted, true)
        if overlap is not None:
            result[organ] = overlap
    return result


def evaluate_ranking(
    cases: Iterable[CaseError], by: RankBy = RankBy.DISAGREEMENT
) -> RankingEvaluation:
    """Compare every order of the list with the true errors.

    Args:
        by: the order of the cases in the result.

    Raises:
        InvalidInput: no case, or none of which an organ counts; or scores lack what `by` sorts by.
    """
    given = list(cases)
    known = [case for case in given if case.ranked.organs]
    if given and not known:
        raise InvalidInput(
            "every organ of these cases has an original label: there is no pseudo label to judge",
            got=f"{len(given)} cases",
            remedy="import CTs without (all) their labels: `atlasloop phantoms DIR --labels none`",
        )
    if not known:
        raise InvalidInput(
            "no case to evaluate: none of the scored cases has a truth in that folder",
            remedy="import and score the cases of the folder first",
        )
    orders = [o for o in RankBy if all(case.ranked.by(o) is not None for case in known)]
    if by not in orders:
        without = sum(case.ranked.by(by) is None for case in known)
        raise InvalidInput(
            f"{without} of {len(known)} cases have no number to list them by {by.value}",
            remedy="score them anew (`atlasloop score --force`), or list by size",
        )
    listed = _in_order(known, by)
    hard_above = _hard_above(known)
    return RankingEvaluation(
        by=by,
        cases=len(known),
        mean_dice=_mean_dice(known),
        mean_dice_ordinary=_mean_dice([case for case in known if case.kind == ORDINARY]),
        mean_dice_difficult=_mean_dice([case for case in known if case.kind != ORDINARY]),
        hard_above=hard_above,
        absent_predicted=sum(len(case.absent & case.dice.keys()) for case in known),
        absent=sum(len(case.absent) for case in known),
        orders=tuple(_quality(known, order, hard_above) for order in orders),
        left_out=tuple(order for order in RankBy if order not in orders),
        per_case=tuple(
            {
                "rank": rank,
                "case": case.case_id,
                "kind": case.kind,
                "hard": case.error > hard_above,
                **{order.value: case.ranked.by(order) for order in orders},
                "error": case.error,
                "dice": case.dice,
                "absent": sorted(case.absent),
            }
            for rank, case in enumerate(listed, start=1)
        ),
    )


def e_aurc(scores: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the risk-coverage curve of lists, scaled: 0 at best, 1 for a random list.

    Of the k cases that a list puts last, the mean error is the *risk* at coverage k / n; the area
    is its mean over k = 1..n (Zenk et al. 2024).

    Args:
        scores: what each list is sorted by, ``[list, case]``.
        errors: of the same cases.

    Returns:
        ``[list]``; NaN where all errors are equal.

    >>> e_aurc(np.array([[3.0, 2.0, 1.0]]), np.array([[0.9, 0.5, 0.1]])).tolist()
    [0.0]
    """
    area = _area(np.take_along_axis(errors, np.argsort(scores, axis=1, kind="stable"), axis=1))
    best, chance = _area(np.sort(errors, axis=1)), errors.mean(axis=1)
    spread = chance - best
    varies = np.ptp(errors, axis=1) > 0
    scaled = np.divide(area - best, spread, out=np.full(len(area), np.nan), where=varies)
    return np.asarray(scaled)


def _area(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    covered = np.arange(1, errors.shape[1] + 1)
    return np.asarray((np.cumsum(errors, axis=1) / covered).mean(axis=1))


def _in_order(cases: Iterable[CaseError], by: RankBy) -> list[CaseError]:
    return sorted(cases, key=lambda case: (-(case.ranked.by(by) or 0.0), case.case_id))


def _hard_above(cases: Sequence[CaseError]) -> float:
    ordinary = [case.error for case in cases if case.kind == ORDINARY]
    return float(np.quantile(ordinary or [case.error for case in cases], HARD_QUANTILE))


def _quality(cases: Sequence[CaseError], by: RankBy, hard_above: float) -> OrderQuality:
    ranked = _in_order(cases, by)
    errors = np.array([case.error for case in ranked])
    scores = np.array([case.ranked.by(by) or 0.0 for case in ranked])
    drawn = np.random.default_rng(0).integers(0, len(errors), (DRAWS, len(errors)))
    varies = len(errors) > 1 and np.ptp(scores) > 0 and np.ptp(errors) > 0
    correlation = _correlations(scores[None], errors[None])[0] if varies else None
    area = e_aurc(scores[None], errors[None])[0]
    return OrderQuality(
        by=by,
        spearman=_estimate(correlation, _correlations(scores[drawn], errors[drawn])),
        spearman_p=_p_value(scores, errors) if varies else None,
        e_aurc=_estimate(area, e_aurc(scores[drawn], errors[drawn])),
        hard=_hard_cases(errors > hard_above),
        top=tuple(_top_share(errors, share) for share in TOP_SHARES),
    )


def _estimate(value: float | None, drawn: NDArray[np.float64]) -> Estimate | None:
    if value is None or not math.isfinite(value):
        return None
    low, high = np.nanquantile(drawn, INTERVAL)
    return Estimate(value=float(value), low=float(low), high=float(high))


def _correlations(scores: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's correlation of every row; NaN where a side does not vary."""
    ranks = [rankdata(side, axis=1) for side in (scores, errors)]
    one, other = (side - side.mean(axis=1, keepdims=True) for side in ranks)
    norm = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    found = np.full(len(norm), np.nan)
    np.divide((one * other).sum(axis=1), norm, out=found, where=norm > 0)
    return found


def _p_value(scores: NDArray[np.float64], errors: NDArray[np.float64]) -> float | None:
    p_value = float(spearmanr(scores, errors).pvalue)
    return p_value if math.isfinite(p_value) else None


def _mean_dice(cases: Sequence[CaseError]) -> float | None:
    return float(np.mean([1.0 - case.error for case in cases])) if cases else None


def _hard_cases(hard: NDArray[np.bool_]) -> HardCases:
    """Args: hard: of each case, first in the list first."""
    count = cases_in(HARD_SHARE, len(hard))
    total = int(hard.sum())
    return HardCases(
        share=HARD_SHARE,
        cases=count,
        hard_total=total,
        hard_found=int(hard[:count].sum()),
        hard_found_by_chance=count * total / len(hard),
        hard_found_at_best=min(count, total),
    )


def _top_share(errors: NDArray[np.float64], share: float) -> TopShare:
    count = cases_in(share, len(errors))
    total = float(errors.sum())
    best = np.sort(errors)[::-1]
    return TopShare(
        share=share,
        cases=count,
        error_share=float(errors[:count].sum()) / total if total else 0.0,
        error_share_by_chance=count / len(errors),
        error_share_at_best=float(best[:count].sum()) / total if total else 0.0,
    )
