"""The priority list (§3.2 ④): which cases need an annotator most.

Organs that already have an original label do not count, because that label overrides any pseudo
label (§3.2 ⑥). There are four orders (`RankBy`), which answer different questions:

- *disagreement*, the default: how much the models' masks differ, organ by organ
  (`atlas_attention.fusion.agreement`), averaged over the organs that are not absent for all. It
  finds the cases whose labels are worst.
- *size*: the paper's attention size, summed over organs in millilitres: the same error in a CT of
  thinner slices has more voxels, not more volume. It grows with the patient: most of it lies along
  the surfaces of large organs, where a prediction is a little unsure.
- *attended*: the same with a floor: the volume of the voxels whose attention reaches 0.2. It finds
  where most millilitres are wrong.
- *relative*: an organ's attention against its own volume, averaged over organs.
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


def rank(cases: Iterable[CaseSizes], by: RankBy = RankBy.DISAGREEMENT) -> list[RankedCase]:
    """Cases in falling order of what they are ranked by; equal ones by case id, so that a list is
    reproducible.

    Args:
        cases: any order, each case once.
        by: see `RankBy`.

    Returns:
        Ranks 1..n; organs of each case by what they add to its place, those with an original label
        in `left_out`.

    Raises:
        Conflict: some scores lack what the list is sorted by. A list must not mix what can be
            compared with what cannot.

    >>> sizes = [OrganScore(organ=o, attention_voxels=v, attention_ml=v / 1000, pseudo_label_ml=0)
    ...          for o, v in (("liver", 40), ("spleen", 2))]
    >>> [(c.rank, c.case_id, c.attention_voxels) for c in rank([
    ...     CaseSizes("a", "d", tuple(sizes), {"liver"}), CaseSizes("b", "d", tuple(sizes)),
    ... ], RankBy.SIZE)]
    [(1, 'b', 42.0), (2, 'a', 2.0)]
    """
    rows = [_row(case, by) for case in cases]
    _require(rows, by)
    rows.sort(key=lambda row: (-(row.by(by) or 0.0), row.case_id))
    return [row.model_copy(update={"rank": place}) for place, row in enumerate(rows, start=1)]


def weight(organ: OrganScore, by: RankBy) -> float:
    """What one organ adds to its case's place: millilitres where a list sums over organs, else a
    term of the mean; 0 where it does not count, or its score lacks the number.

    >>> gone = OrganScore(organ="spleen", attention_voxels=0, attention_ml=0, pseudo_label_ml=0,
    ...                   disagreement=1, expected_ml=0.1)
    >>> weight(gone, RankBy.DISAGREEMENT)
    0.0
    """
    match by:
        case RankBy.DISAGREEMENT:
            return 0.0 if is_absent(organ) else organ.disagreement or 0.0
        case RankBy.SIZE:
            return organ.attention_ml
        case RankBy.ATTENDED:
            return organ.attended_ml or 0.0
        case RankBy.RELATIVE:
            return organ.attention_ml / max(organ.pseudo_label_ml, SMALLEST_ORGAN_ML)


def is_absent(organ: OrganScore) -> bool:
    """Whether all models agree that the organ is not there; see `EMPTY_ML`."""
    return max(organ.pseudo_label_ml, organ.expected_ml or 0.0) < EMPTY_ML


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
    if any(organ.disagreement is None or organ.expected_ml is None for organ in organs):
        return None
    return _mean([weight(o, RankBy.DISAGREEMENT) for o in organs if not is_absent(o)])


def _row(case: CaseSizes, by: RankBy) -> RankedCase:
    organs = [size for size in case.organs if size.organ not in case.original]
    organs.sort(key=lambda size: (-weight(size, by), -size.attention_ml, size.organ))
    attended = [size.attended_ml for size in organs if size.attended_ml is not None]
    # fsum: no total may depend on the order in which a database returns the organs.
    return RankedCase(
        rank=1,
        case_id=case.case_id,
        dataset=case.dataset,
        attention_voxels=fsum(size.attention_voxels for size in organs),
        attention_ml=fsum(size.attention_ml for size in organs),
        relative_attention=_mean([weight(size, RankBy.RELATIVE) for size in organs]),
        disagreement=disagreement_of_case(organs),
        attended_ml=fsum(attended) if len(attended) == len(organs) else None,
        organs=tuple(organs),
        left_out=tuple(sorted({size.organ for size in case.organs} & set(case.original))),
    )


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values) if values else 0.0


def _require(rows: Sequence[RankedCase], by: RankBy) -> None:
    without = sorted(row.case_id for row in rows if row.by(by) is None)
    if without:
        raise Conflict(
            f"a version that did not count what the list by {by.value} is sorted by scored "
            f"{len(without)} of {len(rows)} cases",
            case=without[0],
            remedy="score them anew (`atlasloop score --force`; --case CASE for one), or list by "
            "size",
        )
