"""How well the priority list finds the cases with the largest true errors.

Pure functions: error of pseudo labels against the truth, and its agreement with the ranking.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from atlas_core.errors import Conflict, InvalidInput
from atlas_core.frozen_model import FrozenModel
from atlas_core.overlap import dice
from atlas_core.records import RankBy
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import spearmanr

from atlas_flows.scoring.priority_list import cases_in

TOP_SHARES = (0.05, 0.10)
"""The paper revises the top 5 % (§3.2); 10 % is the second point of the curve."""

HARD_SHARE = 0.10
"""Share of the list in which hard cases are counted."""


class CaseError(FrozenModel):
    """Attention size and true error of one case.

    Dice is averaged over the organs that count for the attention size and are present in the truth
    or in the pseudo label; an organ that is in neither is right and left out of the mean, an organ
    that is in only one of them has Dice 0.
    """

    case_id: str
    kind: str = Field(description="'ordinary', or how the case is hard.")
    attention_ml: float
    relative_attention: float
    disagreement: float | None = Field(default=None, description="See `RankedCase`.")
    dice: dict[str, float] = Field(description="Per organ that is in the truth or the prediction.")

    @property
    def error(self) -> float:
        """1 − mean Dice; 0 where every organ is rightly absent."""
        return 1.0 - sum(self.dice.values()) / len(self.dice) if self.dice else 0.0

    @property
    def hard(self) -> bool:
        return self.kind != ORDINARY

    def attention(self, by: RankBy) -> float:
        """What the list is sorted by.

        Raises:
            Conflict: by disagreement, which the case's score does not have.
        """
        if by is RankBy.SIZE:
            return self.attention_ml
        if by is RankBy.RELATIVE:
            return self.relative_attention
        if self.disagreement is None:
            raise Conflict(
                "the case was scored by a version that did not count disagreement",
                case=self.case_id,
                remedy="score it anew (`atlasloop score --force`)",
            )
        return self.disagreement


ORDINARY = "ordinary"
"""Kind of a phantom without a deliberate difficulty."""


class TopShare(FrozenModel):
    """What revising the first cases of the list would mend."""

    share: float = Field(description="Part of the list, in (0, 1].")
    cases: int = Field(description="Cases in that part, at least 1.")
    error_share: float = Field(description="Their part of all true error.")
    error_share_by_chance: float = Field(description="The same for cases drawn at random.")
    error_share_at_best: float = Field(description="The same for a list sorted by true error.")


class HardCases(FrozenModel):
    """Deliberately hard cases at the top of the list."""

    share: float
    cases: int = Field(description="Cases in that part of the list.")
    hard_total: int
    hard_found: int
    hard_found_by_chance: float = Field(description="Expected among as many random cases.")
    hard_found_at_best: int


class RankingEvaluation(FrozenModel):
    """Agreement of attention with true error."""

    by: RankBy
    cases: int
    spearman: float | None = Field(description="Rank correlation; null where one side is constant.")
    spearman_p: float | None
    mean_dice: float | None = Field(
        description="1 − mean error: over cases of each case's mean, not over organs."
    )
    mean_dice_ordinary: float | None
    mean_dice_hard: float | None
    hard: HardCases
    top: tuple[TopShare, ...]
    per_case: tuple[dict[str, Any], ...] = Field(description="Largest attention first.")


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


def evaluate_ranking(cases: Iterable[CaseError], by: RankBy = RankBy.SIZE) -> RankingEvaluation:
    """Compare the order by attention with the true errors.

    Raises:
        InvalidInput: no case.
    """
    ranked = sorted(cases, key=lambda case: (-case.attention(by), case.case_id))
    if not ranked:
        raise InvalidInput(
            "no case to evaluate: none of the scored cases has a truth in that folder",
            remedy="import and score the cases of the folder first",
        )
    errors = np.array([case.error for case in ranked])
    sizes = np.array([case.attention(by) for case in ranked])
    correlation, p_value = _spearman(sizes, errors)
    return RankingEvaluation(
        by=by,
        cases=len(ranked),
        spearman=correlation,
        spearman_p=p_value,
        mean_dice=_mean_dice(ranked),
        mean_dice_ordinary=_mean_dice([case for case in ranked if not case.hard]),
        mean_dice_hard=_mean_dice([case for case in ranked if case.hard]),
        hard=_hard_cases(ranked),
        top=tuple(_top_share(errors, share) for share in TOP_SHARES),
        per_case=tuple(
            {
                "rank": rank,
                "case": case.case_id,
                "kind": case.kind,
                "attention_ml": case.attention_ml,
                "relative_attention": case.relative_attention,
                "disagreement": case.disagreement,
                "error": case.error,
                "dice": case.dice,
            }
            for rank, case in enumerate(ranked, start=1)
        ),
    )


def _spearman(
    sizes: NDArray[np.float64], errors: NDArray[np.float64]
) -> tuple[float | None, float | None]:
    # scipy answers NaN with a warning where a side does not vary.
    if len(sizes) < 2 or np.ptp(sizes) == 0 or np.ptp(errors) == 0:
        return None, None
    result = spearmanr(sizes, errors)
    p_value = float(result.pvalue)
    return float(result.statistic), p_value if math.isfinite(p_value) else None


def _mean_dice(cases: Sequence[CaseError]) -> float | None:
    return float(np.mean([1.0 - case.error for case in cases])) if cases else None


def _hard_cases(ranked: Sequence[CaseError]) -> HardCases:
    count = cases_in(HARD_SHARE, len(ranked))
    hard = sum(case.hard for case in ranked)
    return HardCases(
        share=HARD_SHARE,
        cases=count,
        hard_total=hard,
        hard_found=sum(case.hard for case in ranked[:count]),
        hard_found_by_chance=count * hard / len(ranked),
        hard_found_at_best=min(count, hard),
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
