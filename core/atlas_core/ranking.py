"""The priority list (§3.2 ④): which cases need an annotator most.

A case's attention size is the sum over its organs of the attention in that organ's map; organs
that already have an original label do not count, because that label overrides any pseudo label
(§3.2 ⑥). Cases compare by millilitres: the same error in a CT of thinner slices has more voxels,
not more volume.

The sum grows with the patient: most of it lies along the surfaces of large organs. A list by
*relative* attention instead compares an organ's attention with the volume of the organ, and weighs
all organs equally.

The list by *disagreement* does not look at attention at all: it asks how much the models' masks
differ, organ by organ (`atlas_attention.fusion.agreement`). Both are offered in addition to the
paper's list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import fsum

from atlas_core.errors import Conflict
from atlas_core.records import OrganScore, RankBy, RankedCase

SMALLEST_ORGAN_ML = 1.0
"""Smallest volume that an organ's attention is divided by: an organ that no model found still
counts, by the millilitres of its attention."""


EMPTY_ML = 0.5
"""An organ is absent for all models where neither its pseudo label nor the volume that they expect
reaches this: agreeing that there is nothing says nothing about the case."""


@dataclass(frozen=True)
class CaseSizes:
    """Attention of one scored case, and the organs that do not count.

    Attributes:
        case_id, dataset: which case.
        organs: attention size of every organ that was predicted.
        original: organs that have an original label.
    """

    case_id: str
    dataset: str
    organs: tuple[OrganScore, ...]
    original: Collection[str] = ()


def rank(cases: Iterable[CaseSizes], by: RankBy = RankBy.SIZE) -> list[RankedCase]:
    """Cases by descending attention; equal ones by case id, so that a list is reproducible.

    Args:
        cases: any order, each case once.
        by: see `RankBy`.

    Returns:
        Ranks 1..n; organs of each case by descending size, those with an original label in
        `left_out`.

    Raises:
        Conflict: by disagreement, and a case has a score without it. A list must not mix what can
            be compared with what cannot.

    >>> sizes = [OrganScore(organ=o, attention_voxels=v, attention_ml=v / 1000, pseudo_label_ml=0)
    ...          for o, v in (("liver", 40), ("spleen", 2))]
    >>> [(c.rank, c.case_id, c.attention_voxels) for c in rank(
    ...     [CaseSizes("a", "d", tuple(sizes), {"liver"}), CaseSizes("b", "d", tuple(sizes))])]
    [(1, 'b', 42.0), (2, 'a', 2.0)]
    """
    totals = [(_counting(case), case) for case in cases]
    if by is RankBy.DISAGREEMENT:
        _require_disagreement(totals)
    totals.sort(key=lambda entry: (-entry[0].by(by), entry[1].case_id))
    return [_row(place, total, case) for place, (total, case) in enumerate(totals, start=1)]


@dataclass(frozen=True)
class _Counting:
    organs: tuple[OrganScore, ...]
    ml: float
    voxels: float
    relative: float
    disagreement: float | None

    def by(self, by: RankBy) -> float:
        if by is RankBy.DISAGREEMENT:
            return self.disagreement or 0.0
        return self.ml if by is RankBy.SIZE else self.relative


def _require_disagreement(totals: Iterable[tuple[_Counting, CaseSizes]]) -> None:
    without = [case.case_id for total, case in totals if total.disagreement is None]
    if without:
        raise Conflict(
            f"{len(without)} cases were scored by a version that did not count disagreement",
            case=without[0],
            remedy="score them anew (`atlasloop score --force`), or list by size",
        )


def _counting(case: CaseSizes) -> _Counting:
    organs = [size for size in case.organs if size.organ not in case.original]
    organs.sort(key=lambda size: (-size.attention_ml, size.organ))
    # fsum: the total must not depend on the order in which a database returns the organs.
    return _Counting(
        tuple(organs),
        fsum(size.attention_ml for size in organs),
        fsum(size.attention_voxels for size in organs),
        relative_attention(organs),
        disagreement_of_case(organs),
    )


def relative_attention(organs: Sequence[OrganScore]) -> float:
    """Mean over `organs` of attention ÷ pseudo label, both in ml; 0 without any.

    >>> relative_attention([
    ...     OrganScore(organ="liver", attention_voxels=0, attention_ml=300, pseudo_label_ml=1500),
    ...     OrganScore(organ="gall_bladder", attention_voxels=0, attention_ml=3, pseudo_label_ml=0),
    ... ])
    1.6
    """
    shares = [size.attention_ml / max(size.pseudo_label_ml, SMALLEST_ORGAN_ML) for size in organs]
    return fsum(shares) / len(shares) if shares else 0.0


def disagreement_of_case(organs: Sequence[OrganScore]) -> float | None:
    """Mean disagreement over `organs` without those that are absent for all models (`EMPTY_ML`);
    0 without any, None where a score does not have it.

    >>> disagreement_of_case([
    ...     OrganScore(organ="liver", attention_voxels=0, attention_ml=0, pseudo_label_ml=1500,
    ...                disagreement=0.25, expected_ml=1400),
    ...     OrganScore(organ="gall_bladder", attention_voxels=0, attention_ml=0, pseudo_label_ml=0,
    ...                disagreement=0, expected_ml=0.1),
    ... ])
    0.25
    """
    seen = []
    for organ in organs:
        if organ.disagreement is None or organ.expected_ml is None:
            return None
        if max(organ.pseudo_label_ml, organ.expected_ml) >= EMPTY_ML:
            seen.append(organ.disagreement)
    return fsum(seen) / len(seen) if seen else 0.0


def _row(place: int, total: _Counting, case: CaseSizes) -> RankedCase:
    return RankedCase(
        rank=place,
        case_id=case.case_id,
        dataset=case.dataset,
        attention_voxels=total.voxels,
        attention_ml=total.ml,
        relative_attention=total.relative,
        disagreement=total.disagreement,
        organs=total.organs,
        left_out=tuple(sorted({size.organ for size in case.organs} & set(case.original))),
    )
