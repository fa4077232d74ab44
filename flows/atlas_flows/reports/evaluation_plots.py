"""Figures of the evaluation as inline SVG drawings; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from atlas_flows.evaluation import ErrorFound
from atlas_flows.reports.distribution_plot import nice_ceiling
from atlas_flows.scoring.priority_list import TOP_SHARE

WIDTH, HEIGHT = 960, 380
LEFT, RIGHT, TOP, BOTTOM = 124, 24, 48, 56

LETTER = 15
"""Width of a letter on a phone, where the style sheet enlarges them, in units of the drawing."""

Point = tuple[float, float]


def error_found_plot(found: ErrorFound) -> Markup:
    """Share of all true error in the top of the list against the share of the list.

    Two curves (millilitres, 1 − Dice), what chance finds (band of 95 % around its mean), and the
    best list for the millilitres.
    """
    last = found.by_volume[-1].share

    def at(share: float, part: float) -> Point:
        return LEFT + (WIDTH - LEFT - RIGHT) * share / last, _y(part)

    low = [at(p.share, p.chance_low) for p in found.by_volume]
    high = [at(p.share, p.chance_high) for p in found.by_volume]
    top = found.top()
    x, y = at(TOP_SHARE, top.found)
    words = f"top 5 %: {top.found:.0%} of the error"
    parts = [
        _open(
            f"Share of all true error in the top of the priority list: {top.found:.0%} in the top "
            f"5 %, by chance {top.by_chance:.0%}"
        ),
        *_percent_lines(),
        f'<path class="band" d="{_path([*low, *reversed(high)])}Z"/>',
        _line([at(p.share, p.by_chance) for p in found.by_volume], "chance"),
        _line([at(p.share, p.at_best) for p in found.by_volume], "best"),
        _line([at(p.share, p.found) for p in found.by_dice], "second"),
        _line([at(p.share, p.found) for p in found.by_volume], "first"),
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>',
        f'<circle class="hot" cx="{x:.1f}" cy="{y:.1f}" r="6"/>',
        f'<text class="mark" x="{x:.1f}" y="{TOP - 14}" text-anchor="middle">{words}</text>',
        *_ticks([(at(p / 100, 0)[0], f"{p} %") for p in (1, 5, 10, 15, 20) if p / 100 <= last]),
        "</svg>",
    ]
    return Markup("".join(parts))  # noqa: S704  (built from numbers only)


def iteration_plot(titles: Sequence[str], lines: Mapping[str, Sequence[float | None]]) -> Markup:
    """Mean Dice over the iterations, a line for each kind of label.

    Args:
        titles: of the iterations, at least one.
        lines: style class ("first", "second") → Dice in [0, 1] of each iteration, None where there
            is none.
    """
    known = [value for values in lines.values() for value in values if value is not None]
    floor = math.floor(10 * min(known, default=0.0)) / 10 if known else 0.0
    floor = min(floor, 0.9)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(titles))

    def at(place: int, dice: float) -> Point:
        return LEFT + step * (place + 0.5), _y((dice - floor) / (1 - floor))

    parts = [
        _open(f"Mean Dice over {len(titles)} iterations"),
        *_horizontal([(part, f"{floor + (1 - floor) * part:.2f}") for part in (0, 0.5, 1)]),
    ]
    for style, values in lines.items():
        points = [at(n, value) for n, value in enumerate(values) if value is not None]
        parts.append(_line(points, style))
        parts += [f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>' for x, y in points]
    parts += _ticks([(at(n, 1.0)[0], word) for n, word in enumerate(_names(titles, step))])
    parts.append("</svg>")
    return Markup("".join(parts))  # noqa: S704  (numbers, and titles that were escaped)


def dataset_plot(sizes_ml: Mapping[str, Sequence[float]], urgent_ml: float) -> Markup:
    """Attention size of every case, a column for each dataset (Fig. 4).

    Args:
        sizes_ml: dataset → attention sizes; at least one dataset with one case.
        urgent_ml: from this size on a case is in the top 5 % of the whole list.
    """
    ceiling = nice_ceiling(max(max(sizes) for sizes in sizes_ml.values()))
    step = (WIDTH - LEFT - RIGHT) / len(sizes_ml)
    parts = [
        _open(f"Attention size of every case in {len(sizes_ml)} datasets"),
        *_horizontal([(part / 4, f"{ceiling * part / 4:g} ml") for part in range(5)]),
    ]
    for place, sizes in enumerate(sizes_ml.values()):
        ranked = sorted(sizes, reverse=True)
        points = [
            (LEFT + step * (place + 0.1 + 0.8 * (n + 0.5) / len(ranked)), _y(size / ceiling))
            for n, size in enumerate(ranked)
        ]
        hot = sum(size >= urgent_ml for size in ranked)
        parts += [_dots(points[hot:], "cool"), _dots(points[:hot], "hot")]
    words = _names(list(sizes_ml), step)
    parts += _ticks([(LEFT + step * (n + 0.5), word) for n, word in enumerate(words)])
    parts.append("</svg>")
    return Markup("".join(parts))  # noqa: S704  (numbers, and names that were escaped)


def _names(names: Sequence[str], width: float) -> list[str]:
    """Names to stand below columns of `width`; their numbers, from 1, where they do not fit."""
    fit = LETTER * max(map(len, names), default=0) <= width
    return [str(escape(name)) if fit else str(n) for n, name in enumerate(names, start=1)]


def _open(label: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    )


def _y(part: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part


def _percent_lines() -> list[str]:
    return _horizontal([(quarter / 4, f"{25 * quarter} %") for quarter in range(5)])


def _horizontal(lines: Sequence[tuple[float, str]]) -> list[str]:
    parts = []
    for part, words in lines:
        y = _y(part)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{y + 5:.1f}" text-anchor="end">{words}</text>')
    return parts


def _ticks(ticks: Sequence[tuple[float, str]]) -> list[str]:
    """Words below the axis; on narrow screens, where they are large, the last one stays inside."""
    edge = WIDTH - RIGHT - 1
    return [
        f'<text x="{WIDTH if x >= edge else x:.1f}" y="{HEIGHT - 18}" '
        f'text-anchor="{"end" if x >= edge else "middle"}">{words}</text>'
        for x, words in ticks
    ]


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _line(points: Sequence[Point], style: str) -> str:
    return f'<path class="line {style}" d="{_path(points)}"/>' if points else ""


def _dots(points: Sequence[Point], style: str) -> str:
    """One path for all points: thousands of cases stay one element."""
    if not points:
        return ""
    path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return f'<path class="{style}" d="{path}" stroke-width="7" stroke-linecap="round"/>'
