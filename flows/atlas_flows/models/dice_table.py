"""Dice of a model before and after a fine-tuning, organ by organ (Table 5)."""

from __future__ import annotations

from atlas_core.catalog import Catalog, evaluations, find_models
from atlas_core.errors import NotFound
from atlas_models.evaluation import AgreementSummary, summarise

from atlas_flows.models.version_evaluation import on_the_same_truth


def before_and_after(catalog: Catalog, model: str, before: int, after: int) -> list[dict[str, str]]:
    """Rows of organ, Dice before and after in per cent, and their difference; the mean at the end.

    Returns:
        Nothing where the two were not evaluated on the same truth.
    """
    refs = [find_models(catalog, model, version)[-1].spec.ref for version in (before, after)]
    try:
        known = on_the_same_truth({ref: evaluations(catalog, ref) for ref in refs})
    except NotFound:
        return []
    old, new = (summarise(evaluation.cases) for evaluation in known)
    rows = [
        _row(organ, _dice(old, organ), _dice(new, organ), (before, after)) for organ in old.organs
    ]
    return [*rows, _row("mean", old.mean_dice, new.mean_dice, (before, after))]


def _dice(summary: AgreementSummary, organ: str) -> float | None:
    spread = summary.organs.get(organ, {}).get("dice")
    return None if spread is None else spread.mean


def _row(
    organ: str, old: float | None, new: float | None, versions: tuple[int, int]
) -> dict[str, str]:
    gain = None if old is None or new is None else new - old
    return {
        "organ": organ,
        f"version {versions[0]}": _percent(old),
        f"version {versions[1]}": _percent(new),
        "difference": "–" if gain is None else f"{100 * gain:+.1f}",
    }


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
