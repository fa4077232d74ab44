"""What all cases are ranked by, as an inline SVG drawing (Fig. 4 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from atlas_core.records import RankBy
from markupsafe import Markup

WIDTH, HEIGHT = 960, 320
LEFT, RIGHT, TOP, BOTTOM = 16, 16, 40, 44
PLOT_LEFT = 110
"""Points begin right of the numbers on the lines."""


TITLES: Final = {
    RankBy.DISAGREEMENT: ("Disagreement", ""),
    RankBy.SIZE: ("Attention size", " ml"),
    RankBy.ATTENDED: ("Attended volume", " ml"),
    RankBy.RELATIVE: ("Relative attention", ""),
}
"""Name and unit of what a list is sorted by."""


def plot_distribution(
    values: Sequence[float],
    urgent: int,
    by: RankBy = RankBy.SIZE,
    urgent_name: str = "top 5 %",
) -> Markup:
    """One point per case, largest first; the first `urgent` are marked.

    Args:
        values: what the cases are ranked by, in falling order, at least one.
        urgent: cases in the top share that annotators revise next.
        by: what it is.
        urgent_name: what that share is called; not escaped.

    Returns:
        An ``<svg>`` element; all colours come from the page's style sheet.
    """
    name, unit = TITLES[by]
    ceiling = nice_ceiling(max(values))
    points = [(_x(place, len(values)), _y(value, ceiling)) for place, value in enumerate(values)]
    form = ".1f" if unit else ".3g"
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{name} of {len(values)} cases, '
        f"largest first: from {values[0]:{form}} to {values[-1]:{form}}{unit}; "
        f'{urgent_name}: {urgent}">',
        *_grid(ceiling, unit),
        _dots(points[urgent:], "cool"),
        _dots(points[:urgent], "hot"),
        *_threshold(urgent, len(values), urgent_name),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        f"cases by rank (1 to {len(values)})</text>",
        "</svg>",
    ]
    return Markup("".join(parts))  # noqa: S704  (numbers, and a name of ours)


def _x(place: int, total: int) -> float:
    return _left_edge(place + 0.5, total)


def _left_edge(place: float, total: int) -> float:
    return PLOT_LEFT + (WIDTH - PLOT_LEFT - RIGHT) * place / total


def _y(size: float, ceiling: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * size / ceiling


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 2, 2.5, 5 × 10^n that is at least `value`; 1 for 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * power >= value)


def _grid(ceiling: float, unit: str) -> list[str]:
    parts = []
    for quarter in range(5):
        size = ceiling * quarter / 4
        y = _y(size, ceiling)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        # On the line, not beside it: the letters are enlarged on phones and need no margin here.
        if quarter:
            parts.append(f'<text x="{LEFT}" y="{y - 5:.1f}">{size:g}{unit}</text>')
    return parts


def _dots(points: Sequence[tuple[float, float]], style: str) -> str:
    """One path for all points: thousands of cases stay one element."""
    if not points:
        return ""
    path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    width = 9 if len(points) < 200 else 5
    return f'<path class="{style}" d="{path}" stroke-width="{width}" stroke-linecap="round"/>'


def _threshold(urgent: int, total: int, name: str) -> list[str]:
    x = _left_edge(urgent, total)
    # A label right of the line leaves the drawing when nearly all cases are urgent.
    anchor, shift = ("start", 8) if x < WIDTH * 0.75 else ("end", -8)
    words = "1 case" if urgent == 1 else f"{urgent} cases"
    return [
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 26}" y2="{HEIGHT - BOTTOM}"/>',
        f'<text class="mark" x="{x + shift:.1f}" y="{TOP - 12}" text-anchor="{anchor}">'
        f"{name}: {words}</text>",
    ]
