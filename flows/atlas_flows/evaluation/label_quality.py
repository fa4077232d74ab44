"""Table 5: Dice and NSD per organ before and after each iteration, with Wilcoxon's marks.

Pure functions on figures that were measured; `paper_evaluation` measures them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from atlas_core.catalog import CaseAgreement
from atlas_core.frozen_model import FrozenModel
from atlas_models.evaluation import FIGURES, Comparison, Spread, compare, summarise
from pydantic import Field


class LabelKind(StrEnum):
    """Which labels are compared with the truth."""

    PSEUDO = "pseudo"
    """What that iteration's ensemble predicts, whatever annotators did: the paper's Table 5."""
    ASSEMBLED = "assembled"
    """The map that was assembled in that iteration, which is what a release holds: original over
    revised over pseudo, overlaps settled, pseudo labels post-processed (§3.2 ⑥)."""


class MeasuredIteration(FrozenModel):
    """One turn of the loop against the truth."""

    t: int = Field(ge=0, description="0: before any revision.")
    title: str = Field(description="For instance the versions of its models.")
    cases: tuple[CaseAgreement, ...]
    not_assembled: int = Field(default=0, ge=0, description="Cases left out of `cases` for this.")


class Figure(FrozenModel):
    """One figure of one organ after one iteration."""

    spread: Spread = Field(description="Over the cases that have the organ.")
    change: Comparison | None = Field(
        description="Against the iteration before, on the cases of both; None for the first."
    )
    change_from_start: Comparison | None = Field(description="Against the first iteration.")

    @property
    def text(self) -> str:
        """``94.1 ± 7.2 **``; the mark is that of the change against the iteration before."""
        return f"{self.spread} {self.change.mark if self.change else ''}".rstrip()


class IterationRow(FrozenModel):
    """One organ, or "mean": over organs, as `atlas_models.evaluation.metrics` defines it."""

    organ: str
    dice: tuple[Figure, ...] = Field(description="One per iteration.")
    nsd: tuple[Figure, ...]


class IterationTable(FrozenModel):
    """Table 5."""

    kind: LabelKind
    titles: tuple[str, ...]
    cases: int = Field(
        description="Cases that every iteration has; only those are compared. An iteration without "
        "any case has no figures, and the others are compared without it."
    )
    not_assembled: tuple[int, ...] = Field(
        description="Cases of each iteration that were never assembled in it, and are left out."
    )
    organs: tuple[IterationRow, ...]
    mean: IterationRow

    @property
    def mean_dice(self) -> tuple[float | None, ...]:
        """Mean Dice of each iteration, which the loop is meant to raise; None without a case."""
        return tuple(figure.spread.mean for figure in self.mean.dice)


def iteration_table(kind: LabelKind, iterations: Sequence[MeasuredIteration]) -> IterationTable:
    """Table 5 of iterations in order, over the cases that all of them have (of those with any)."""
    common = _common(iterations)
    names = dict.fromkeys(row.organ for cases in common for case in cases for row in case.organs)
    summaries = [summarise(cases) for cases in common]

    def figures(organ: str, figure: str) -> tuple[Figure, ...]:
        found = []
        for number, summary in enumerate(summaries):
            spreads = summary.overall if organ == "mean" else summary.organs.get(organ, {})
            found.append(
                Figure(
                    spread=spreads.get(figure, Spread.of([])),
                    change=_change(common, number - 1, number, figure, organ),
                    change_from_start=_change(common, 0, number, figure, organ),
                )
            )
        return tuple(found)

    rows = [
        IterationRow(organ=name, **{figure: figures(name, figure) for figure in FIGURES})
        for name in (*names, "mean")
    ]
    return IterationTable(
        kind=kind,
        titles=tuple(iteration.title for iteration in iterations),
        cases=max(map(len, common), default=0),
        not_assembled=tuple(iteration.not_assembled for iteration in iterations),
        organs=tuple(rows[:-1]),
        mean=rows[-1],
    )


def _common(iterations: Sequence[MeasuredIteration]) -> list[list[CaseAgreement]]:
    ids = [{case.case_id for case in one.cases} for one in iterations if one.cases]
    shared = set.intersection(*ids) if ids else set()
    return [
        sorted((c for c in one.cases if c.case_id in shared), key=lambda case: case.case_id)
        for one in iterations
    ]


def _change(
    common: Sequence[Sequence[CaseAgreement]], before: int, after: int, figure: str, organ: str
) -> Comparison | None:
    if before < 0 or before == after or not common[before] or not common[after]:
        return None
    return compare(common[before], common[after])[figure].get(organ)
