"""The priority list as JSON, CSV and table rows, for the command, the flow and the page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_core.errors import InvalidInput
from atlas_core.ranking import weight
from atlas_core.records import OrganScore, RankBy, RankedCase, Reading

if TYPE_CHECKING:
    from atlas_core.catalog import Catalog

TOP_SHARE = 0.05
"""Part of the list that annotators revise per iteration (§3.2 ⑤, Fig. 4)."""


def cases_in(share: float, total: int) -> int:
    """Cases in `share` of a list of `total`: rounded up, at least 1 of a list that is not empty."""
    # The tolerance keeps 0.05 * 40 = 2.0000000000000004 at 2.
    return min(total, max(1, math.ceil(share * total - 1e-9))) if total else 0


@dataclass(frozen=True)
class ListRequest:
    """Which list, and how much of it.

    Attributes:
        ensemble: name of the one whose list it is; None: the one in use.
        top, share: only the first cases, or the first part; None: all. Not both.
    """

    reading: Reading
    by: RankBy
    dataset: str | None = None
    ensemble: str | None = None
    top: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class PriorityList:
    """The cases that were asked for, in order.

    Attributes:
        total: length of the whole list.
        organs: of the atlas.
        note: about cases that are in the list of another ensemble only; empty: there are none.
    """

    cases: tuple[RankedCase, ...]
    total: int
    organs: tuple[str, ...]
    note: str


def read_list(catalog: Catalog, request: ListRequest) -> PriorityList:
    """The priority list out of the catalog.

    Raises:
        InvalidInput: a number of cases and a share.
        NotFound: no such dataset or ensemble.
        Conflict: some scores lack what the list is sorted by.
    """
    from atlas_core.catalog import find_ensemble

    if request.top is not None and request.share is not None:
        raise InvalidInput("top and share exclude each other", remedy="give one of them")
    reading, dataset = request.reading, request.dataset
    if dataset is not None:
        catalog.dataset(dataset)  # a typing error must not look like an empty dataset
    key = (
        catalog.latest_ensemble(reading, dataset)
        if request.ensemble is None
        else find_ensemble(catalog, request.ensemble).ensemble.key
    )
    cases = catalog.ranking(reading, key, dataset, request.by)
    others = 0 if key is None else catalog.scored_otherwise(reading, key, dataset)
    shown = cases[: request.top]
    if request.share is not None:
        shown = cases[: cases_in(request.share, len(cases))]
    return PriorityList(
        tuple(shown),
        len(cases),
        tuple(catalog.organ_scheme().names),
        of_other_ensembles(others, request.ensemble),
    )


def as_json(cases: Sequence[RankedCase], reading: Reading, by: RankBy) -> str:
    """One JSON object: reading, number of cases, and the cases in order of rank."""
    return json.dumps(
        {
            "reading": reading.value,
            "by": by.value,
            "cases": len(cases),
            "ranking": [_as_dict(case) for case in cases],
        },
        indent=2,
    )


def as_csv(cases: Sequence[RankedCase], organs: Sequence[str]) -> str:
    """One line per case, a column of millilitres per organ; empty where an organ is left out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["rank", "case", "dataset", "attention_voxels", "attention_ml", "relative_attention"]
        + ["disagreement", "attended_ml"]
        + [f"{organ}_ml" for organ in organs]
        + ["left_out"]
    )
    for case in cases:
        sizes = {score.organ: f"{score.attention_ml:.3f}" for score in case.organs}
        writer.writerow(
            [
                case.rank,
                case.case_id,
                case.dataset,
                f"{case.attention_voxels:.3f}",
                f"{case.attention_ml:.3f}",
                f"{case.relative_attention:.4f}",
                "" if case.disagreement is None else f"{case.disagreement:.4f}",
                "" if case.attended_ml is None else f"{case.attended_ml:.3f}",
                *(sizes.get(organ, "") for organ in organs),
                " ".join(case.left_out),
            ]
        )
    return text.getvalue()


def as_rows(cases: Sequence[RankedCase], by: RankBy) -> list[dict[str, str]]:
    """Short rows for people: the three organs that drive a case's place are named."""
    return [
        {
            "rank": str(case.rank),
            "case": case.case_id,
            "dataset": case.dataset,
            "disagreement": "–" if case.disagreement is None else f"{case.disagreement:.3f}",
            "attention (ml)": f"{case.attention_ml:.1f}",
            "attended (ml)": "–" if case.attended_ml is None else f"{case.attended_ml:.1f}",
            "relative": f"{case.relative_attention:.2f}",
            "because of": driving(case.organs, by) or "–",
            "left out": ", ".join(case.left_out) or "–",
        }
        for case in cases
    ]


NUMBERS = ("rank", "disagreement", "attention (ml)", "attended (ml)", "relative")
"""Columns of `as_rows` that hold numbers."""


def driving(organs: Sequence[OrganScore], by: RankBy) -> str:
    """The first three organs and what each adds to its case's place: ``spleen 0.42``."""
    unit = ".0f" if by in (RankBy.SIZE, RankBy.ATTENDED) else ".2f"
    shown = [(organ.organ, weight(organ, by)) for organ in organs[:3]]
    return ", ".join(f"{organ} {added:{unit}}" for organ, added in shown if added > 0)


def _as_dict(case: RankedCase) -> dict[str, Any]:
    return {
        "rank": case.rank,
        "case": case.case_id,
        "dataset": case.dataset,
        "attention_voxels": case.attention_voxels,
        "attention_ml": case.attention_ml,
        "relative_attention": case.relative_attention,
        "disagreement": case.disagreement,
        "attended_ml": case.attended_ml,
        "organs": {
            score.organ: {
                "attention_voxels": score.attention_voxels,
                "attention_ml": score.attention_ml,
                "pseudo_label_ml": score.pseudo_label_ml,
                "disagreement": score.disagreement,
                "expected_ml": score.expected_ml,
                "attended_ml": score.attended_ml,
            }
            for score in case.organs
        },
        "left_out": list(case.left_out),
    }


def of_other_ensembles(cases: int, ensemble: str | None = None) -> str:
    """What a list says of the cases that only other ensembles have scored; empty where none are.

    Args:
        cases: see `Catalog.scored_otherwise`.
        ensemble: name of the one whose list it is; None: the one in use.
    """
    if not cases:
        return ""
    named = "" if ensemble is None else f" --ensemble {ensemble}"
    return (
        f"{cases} cases were scored by other ensembles only and are not in this list, because "
        f"sizes of different ensembles do not compare; score them: `atlasloop score{named}`"
    )
