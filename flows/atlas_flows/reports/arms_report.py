"""Arms of a loop side by side: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from atlas_flows.reports.evaluation_plots import iteration_plot
from atlas_flows.reports.ranking_report import page_template

STYLES = ("first", "second")
"""Of the curves, in the order of the arms."""


@dataclass(frozen=True)
class ArmCurve:
    """One arm, by iteration; the first place of each list is M0's.

    Attributes:
        hidden, ordinary: mean Dice on held-out cases of the two groups.
        assembled: mean Dice of the pool's assembled labels; None where they were not assembled.
        revised, minutes: cases, and time of the annotator.
    """

    name: str
    hidden: Sequence[float]
    ordinary: Sequence[float]
    assembled: Sequence[float | None]
    revised: Sequence[int]
    minutes: Sequence[float]


def build_arms_report(arms: Sequence[ArmCurve], *, title: str, notes: Sequence[str] = ()) -> str:
    """The page as HTML text: no script, no outside request.

    Args:
        arms: at most two.
        notes: things that a reader must know before trusting a number.
    """
    turns = [f"M{t}" for t in range(max(len(arm.hidden) for arm in arms))]
    groups = (
        ("Patients that M0 does not know", [arm.hidden for arm in arms]),
        ("The others", [arm.ordinary for arm in arms]),
        ("Assembled labels of the pool", [arm.assembled for arm in arms]),
    )
    page = {
        "title": title,
        "notes": list(notes),
        "legend": [(style, arm.name) for style, arm in zip(STYLES, arms, strict=False)],
        "plots": [
            (name, iteration_plot(turns, dict(zip(STYLES, curves, strict=False))))
            for name, curves in groups
        ],
        "rows": [_row(arm, t) for arm in arms for t in range(len(arm.hidden))],
        "arms": [arm.name for arm in arms],
        "version": version("atlasloop"),
    }
    return page_template("arms.html.j2").render(page=page)


def _row(arm: ArmCurve, t: int) -> dict[str, str]:
    assembled = arm.assembled[t] if t < len(arm.assembled) else None
    return {
        "arm": f"{arm.name}, M{t}",
        "not known to M0": f"{arm.hidden[t]:.3f}",
        "others": f"{arm.ordinary[t]:.3f}",
        "pool, assembled": "–" if assembled is None else f"{assembled:.3f}",
        "revised": str(arm.revised[t]),
        "minutes": f"{arm.minutes[t]:.0f}",
    }
