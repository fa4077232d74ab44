"""Whether labels are where organs are: sides, order, volume, density, pieces.

What an organ is like stands in the organ scheme: its partner, where its centre typically lies
(`Organ.centre_mm`), its volume, whether it holds air. Nothing here refuses anything: children,
tumours, transplants and situs inversus are real. What is found is a warning, for people to look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf
from statistics import median
from typing import Final

from atlas_core.importing.label_survey import FAR_MM, OrganFinding
from atlas_core.organs import Organ, OrganScheme
from atlas_core.records import CaseWarning, WarningKind

MIN_APART_MM: Final = (40.0, 35.0, 35.0)
"""Left-right, back-front, feet-head: only organs whose centres typically lie further apart say how
the body lies; those of others change places between healthy people."""

CONTRARY: Final = 1 / 3
"""Two organs lie the wrong way round if they are apart by this share of what is typical, but in the
other direction. Less is neither right nor wrong."""

MOST: Final = 2 / 3
"""So much of the evidence, in typical millimetres, decides."""

PARTNERS_MM: Final = 10.0
"""Left and right partner have changed sides if their centres lie this much the wrong way round."""

VOLUME_MARGIN: Final = 2.5
"""A volume is remarkable outside of the typical range by this factor: `Organ.volume_ml` is for
adults without disease. Small healthy adults have kidneys of 70 ml, old ones a pancreas of 20."""

MAX_AIR: Final = 0.1
"""Share of a solid organ's voxels that may be as thin as air: the border to lung or bowel."""

MAX_PADDING: Final = 0.02
"""Share of any organ's voxels that may lie outside the field of view."""

FAR_ML: Final = 2.0
FAR_SHARE: Final = 0.02
"""Pieces far away are said if they are larger than both: specks are no concern of a reader."""

MAX_OVERLAP: Final = 0.05
"""Share of the smaller of two organs that the other may cover: masks drawn one by one touch."""

CUT_SHARE: Final = 0.25
"""An organ that ends in the last slice with more than this share of its widest cross-section goes
on outside: a dome or a pole that is touched has less."""

MAX_SLENDER: Final = 3.0
"""Longer ones, of the height of a scan, are cut by every one and miss nothing."""

WELL_INSIDE_MM: Final = 10.0
"""Of an organ whose centre should lie nearer to the end of the scan, or outside, none is missed."""

_MIRRORED: Final = (
    "left and right are exchanged in this scan or its labels (or the patient has situs inversus)",
    "back and front are exchanged in this scan or its labels",
    "head and feet are exchanged in this scan or its labels",
)

_DIRECTIONS: Final = (("left", "right"), ("behind", "in front"), ("below", "above"))


@dataclass(frozen=True)
class LabelFindings:
    """All labels of one case, measured.

    Attributes:
        organs: those that are not empty.
        overlaps_ml: volume that two organs share, by their names.
        midline_mm: left-right centre of the body; None: unknown.
        feet_head_mm: lower and upper end of the scan.
    """

    organs: Sequence[OrganFinding]
    overlaps_ml: Mapping[tuple[str, str], float]
    midline_mm: float | None
    feet_head_mm: tuple[float, float]


def label_warnings(found: LabelFindings, scheme: OrganScheme) -> tuple[CaseWarning, ...]:
    """What of the labels of one case is unlike the organs of `scheme`."""
    known = [one for one in found.organs if one.organ in scheme]
    warnings = [*_orientation(known, scheme, found.midline_mm)]
    inside = _inside_mm(known, scheme, found.feet_head_mm)
    for one in known:
        warnings += _of_organ(one, scheme[one.organ], inside[one.organ])
    volumes = {one.organ: one.ml for one in known}
    for (first, second), ml in found.overlaps_ml.items():
        if ml > MAX_OVERLAP * min(volumes.get(first, ml), volumes.get(second, ml)):
            text = f"{first} and {second} share {ml:.3g} ml"
            warnings.append(CaseWarning(kind=WarningKind.OVERLAP, organ=first, text=text))
    return tuple(warnings)


def _inside_mm(
    found: Sequence[OrganFinding], scheme: OrganScheme, feet_head_mm: tuple[float, float]
) -> dict[str, tuple[float, float]]:
    """How far inside the lower and the upper end of the scan each organ's centre should lie, by
    where the others are: a CT of the abdomen cuts lungs, and misses nothing. Where no others say
    it, all are expected."""
    typical = {one.organ: scheme[one.organ].centre_mm for one in found}
    shifts = [
        one.centre_mm[2] - place[2]
        for one in found
        if not any(one.cut[2]) and (place := typical[one.organ]) is not None
    ]
    low, high = feet_head_mm
    inside = {}
    for organ, place in typical.items():
        at = inf if not shifts or place is None else place[2] + median(shifts)
        inside[organ] = (inf, inf) if at == inf else (at - low, high - at)
    return inside


def _of_organ(
    one: OrganFinding, organ: Organ, inside_mm: tuple[float, float]
) -> Iterable[CaseWarning]:
    """What one organ says by itself; `inside_mm`: as `_inside_mm` gives it."""

    def warning(kind: WarningKind, text: str) -> CaseWarning:
        return CaseWarning(kind=kind, organ=organ.name, text=text)

    if organ.volume_ml is not None:
        low, high = organ.volume_ml
        usual = f"{one.ml:.3g} ml, usually {low:g} to {high:g}"
        if one.ml > high * VOLUME_MARGIN:
            yield warning(WarningKind.VOLUME, f"{organ.name} is large: {usual}")
        elif one.ml < low / VOLUME_MARGIN and not any(map(any, one.cut)):
            yield warning(WarningKind.VOLUME, f"{organ.name} is small: {usual}")
        elif (end := _cut_at(one, inside_mm)) is not None:
            text = f"{organ.name} is cut by the {end} end of the scan: slices may be missing"
            yield warning(WarningKind.TRUNCATED, text)
        elif one.ml < low / VOLUME_MARGIN and min(inside_mm) > 0:
            text = f"{organ.name} is cut by the border of the scan: {usual}"
            yield warning(WarningKind.TRUNCATED, text)
    if one.padding > MAX_PADDING:
        text = f"{one.padding:.0%} of {organ.name} lie outside the field of view"
        yield warning(WarningKind.DENSITY, text)
    elif one.air > MAX_AIR and not organ.holds_air:
        yield warning(WarningKind.DENSITY, f"{one.air:.0%} of {organ.name} lie over air")
    if one.far_ml > max(FAR_ML, FAR_SHARE * one.ml):
        text = f"{one.far_ml:.3g} ml of {organ.name} lie more than {FAR_MM:g} mm from the rest"
        yield warning(WarningKind.PIECES, text)


def _cut_at(one: OrganFinding, inside_mm: tuple[float, float]) -> str | None:
    """The end of the scan that cuts an organ which should be in it."""
    if one.slender > MAX_SLENDER:
        return None
    for end, share, mm in zip(("lower", "upper"), one.at_ends, inside_mm, strict=True):
        if share > CUT_SHARE and mm > WELL_INSIDE_MM:
            return end
    return None


@dataclass(frozen=True)
class _Pair:
    """Two organs, or an organ and the middle of the body, along one axis.

    Attributes:
        weight: how far apart they typically are (mm).
        right: True: in the typical order; False: the other way round.
    """

    first: str
    second: str
    weight: float
    right: bool


def _orientation(
    found: Sequence[OrganFinding], scheme: OrganScheme, midline_mm: float | None
) -> Iterable[CaseWarning]:
    """Axes along which the body is mirrored, else organs that are not where others say."""
    exchanged = set()
    for axis in range(3):
        pairs = _pairs(found, scheme, axis, midline_mm)
        if _against(pairs):
            yield CaseWarning(kind=WarningKind.ORIENTATION, text=_MIRRORED[axis])
            continue
        if axis == 0:
            for left, right in _exchanged(found, scheme):
                exchanged |= {left, right}
                text = f"{left} lies to the right of {right}: exchanged?"
                yield CaseWarning(kind=WarningKind.ORIENTATION, organ=left, text=text)
        for one in found:
            own = [pair for pair in pairs if one.organ in (pair.first, pair.second)]
            if len(own) > 1 and one.organ not in exchanged and _against(own):
                yield _misplaced(one.organ, axis, own, scheme)


def _against(pairs: Sequence[_Pair]) -> bool:
    total = sum(pair.weight for pair in pairs)
    wrong = sum(pair.weight for pair in pairs if not pair.right)
    return total > 0 and wrong >= MOST * total


def _pairs(
    found: Sequence[OrganFinding], scheme: OrganScheme, axis: int, midline_mm: float | None
) -> list[_Pair]:
    """Pairs that say something along `axis`."""
    places = []
    for one in found:
        typical = scheme[one.organ].centre_mm
        # Many organs slope: how far in front they are depends on the part that is seen.
        if typical is not None and (axis != 1 or not any(one.cut[2])):
            places.append((one.organ, typical[axis], one.centre_mm[axis], one.cut[axis]))
    if axis == 0 and midline_mm is not None:
        places.append(("", 0.0, midline_mm, (False, False)))
    pairs = []
    for (first, typical_a, a, cut_a), (second, typical_b, b, cut_b) in combinations(places, 2):
        apart = typical_b - typical_a
        # What goes on outside the scan may be further away, never nearer, where it is cut.
        nearer = cut_a[1] or cut_b[0] if b > a else cut_a[0] or cut_b[1]
        if abs(apart) >= MIN_APART_MM[axis] and abs(b - a) >= CONTRARY * abs(apart) and not nearer:
            pairs.append(_Pair(first, second, abs(apart), (b - a) * apart > 0))
    return pairs


def _exchanged(found: Sequence[OrganFinding], scheme: OrganScheme) -> Iterable[tuple[str, str]]:
    """Left and right partners that have changed sides."""
    x_mm = {one.organ: one.centre_mm[0] for one in found}
    for organ in (scheme[name] for name in x_mm):
        if organ.side == "left" and organ.partner in x_mm:
            right = organ.partner
            if x_mm[organ.name] > x_mm[right] + PARTNERS_MM:
                yield organ.name, right


def _misplaced(organ: str, axis: int, own: Sequence[_Pair], scheme: OrganScheme) -> CaseWarning:
    strongest = max((pair for pair in own if not pair.right), key=lambda pair: pair.weight)
    other = strongest.second if strongest.first == organ else strongest.first
    here, there = (scheme[name].centre_mm if name else (0.0, 0.0, 0.0) for name in (organ, other))
    less = here is not None and there is not None and here[axis] < there[axis]
    usual, is_now = _DIRECTIONS[axis] if less else reversed(_DIRECTIONS[axis])
    than = other or "the middle of the body"
    text = f"{organ} lies {is_now}, not {usual}, as seen from {than}"
    return CaseWarning(kind=WarningKind.ORIENTATION, organ=organ, text=text)
