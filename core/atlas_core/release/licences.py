"""What the licences of datasets forbid when their masks are released together.

No legal advice: four rules that a person can check, each of which must be accepted by name where it
is broken. The rules look at the licences recorded in presets and in the catalog.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from atlas_core.records import Dataset


class LicenceRisk(StrEnum):
    """Why a release may not be allowed."""

    UNKNOWN = "unknown"
    """No licence is recorded, or it is not one of those known here."""
    NO_DERIVATIVES = "no-derivatives"
    """Masks drawn on a CT derive from it; the licence forbids publishing derivatives."""
    NON_COMMERCIAL_MIX = "non-commercial-mix"
    """Some datasets forbid commercial use and others allow it: the permissive licence of a part may
    be mistaken for that of the whole."""
    SHARE_ALIKE = "share-alike"
    """Two licences each require the whole to be released under themselves."""


@dataclass(frozen=True)
class LicenceProblem:
    """One rule that a choice of datasets breaks.

    Attributes:
        risk: the rule.
        datasets: names of those concerned, sorted.
        why: in one clause.
    """

    risk: LicenceRisk
    datasets: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class _Terms:
    known: bool
    no_derivatives: bool
    non_commercial: bool
    share_alike: str | None


_KNOWN: Final = frozenset({"CC", "CC0", "GPL", "AGPL", "LGPL", "MIT", "APACHE", "BSD", "PDDL"})
_COPYLEFT: Final = frozenset({"GPL", "AGPL", "LGPL"})


def licence_problems(datasets: Iterable[Dataset]) -> tuple[LicenceProblem, ...]:
    """The rules that releasing these datasets together breaks; empty if it breaks none.

    >>> [p.risk.value for p in licence_problems([Dataset(name="a", licence="CC-BY-NC-ND-4.0")])]
    ['no-derivatives']
    """
    terms = {d.name: _terms(d.licence) for d in sorted(datasets, key=lambda d: d.name)}
    unknown = tuple(name for name, t in terms.items() if not t.known)
    no_derivatives = tuple(name for name, t in terms.items() if t.no_derivatives)
    closed = tuple(name for name, t in terms.items() if t.non_commercial)
    opened = tuple(name for name, t in terms.items() if t.known and not t.non_commercial)
    families = sorted({t.share_alike for t in terms.values() if t.share_alike is not None})
    problems = []
    if unknown:
        why = "their licence is not known; write it down with the dataset"
        problems.append(LicenceProblem(LicenceRisk.UNKNOWN, unknown, why))
    if no_derivatives:
        why = "their licence forbids to publish what derives from the CTs"
        problems.append(LicenceProblem(LicenceRisk.NO_DERIVATIVES, no_derivatives, why))
    if closed and opened:
        why = f"they forbid commercial use, {', '.join(opened)} allow it"
        problems.append(LicenceProblem(LicenceRisk.NON_COMMERCIAL_MIX, closed, why))
    if len(families) > 1:
        sharing = tuple(name for name, t in terms.items() if t.share_alike is not None)
        why = f"each of {', '.join(families)} wants the whole under itself"
        problems.append(LicenceProblem(LicenceRisk.SHARE_ALIKE, sharing, why))
    return tuple(problems)


def _terms(licence: str) -> _Terms:
    """ "CC BY-NC-SA" and "CC-BY-NC-SA-4.0" are the same family."""
    words = set(re.findall(r"[A-Z0-9]+", licence.upper()))
    non_commercial = "NC" in words
    share_alike = next(iter(sorted(words & _COPYLEFT)), None)
    if "SA" in words:
        share_alike = "CC-BY-NC-SA" if non_commercial else "CC-BY-SA"
    return _Terms(bool(words & _KNOWN), "ND" in words, non_commercial, share_alike)
