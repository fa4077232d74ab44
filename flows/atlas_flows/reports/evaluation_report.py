"""The report of an evaluation: one self-contained HTML page of the paper's tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from atlas_flows.evaluation import (
    DiceMatrix,
    Efficiency,
    IterationSummary,
    IterationTable,
    LabelKind,
    PaperEvaluation,
)
from atlas_flows.reports import evaluation_rows as rows
from atlas_flows.reports.distribution_plot import plot_distribution
from atlas_flows.reports.evaluation_plots import dataset_plot, error_found_plot, iteration_plot
from atlas_flows.reports.ranking_report import page_template
from atlas_flows.scoring.priority_list import TOP_SHARE, cases_in

MOST_SHADE = 40
"""Percent of colour behind a Dice of 1: the number on it stays readable, dark or light."""

LEAST_DICE = 0.5
"""Cells of this Dice and less have no colour."""


def build_loop_report(
    evaluation: PaperEvaluation,
    *,
    title: str = "Evaluation of the loop",
    notes: Sequence[str] = (),
) -> str:
    """The page as HTML text: no script, no outside request; what was left out says why.

    Args:
        evaluation: what `evaluate_all` returned (or `PaperEvaluation.model_validate_json`).
        notes: things that a reader must know before trusting a number.
    """
    page = {
        "title": title,
        "subtitle": _subtitle(evaluation),
        "notes": list(notes),
        "facts": _facts(evaluation),
        "left_out": evaluation.left_out,
        "truth": evaluation.truth or "none",
        "efficiency": rows.efficiency_rows(evaluation.efficiency),
        "efficiency_note": _efficiency_note(evaluation.efficiency),
        "words": _words(evaluation),
        "version": version("atlasloop"),
        "made_at": f"{evaluation.made_at:%Y-%m-%d %H:%M} UTC",
        **_sizes(evaluation),
        **_found(evaluation),
        "detection": [
            {"reading": table.reading.value, "rows": rows.detection_rows(table)}
            for table in evaluation.detection
        ],
        **_iterations(evaluation),
        "architectures": _matrices(evaluation.architectures),
        "annotators": _matrices(evaluation.annotators),
        "false_positives": _false_positives(evaluation),
    }
    return page_template("evaluation.html.j2").render(page=page)


def _subtitle(evaluation: PaperEvaluation) -> str:
    models = " + ".join(evaluation.models) or evaluation.ensemble
    compared = f"{evaluation.cases} with a known truth" if evaluation.truth else "no truth given"
    return f"{len(evaluation.sizes)} scored cases, {compared}; newest ensemble: {models}"


def _facts(evaluation: PaperEvaluation) -> list[tuple[str, str]]:
    facts = [("scored cases", str(len(evaluation.sizes)))]
    if evaluation.by_iteration:
        newest = evaluation.by_iteration[-1]
        first = evaluation.by_iteration[0]
        facts += [
            ("mean Dice, pseudo labels", _change(first.mean_dice, newest.mean_dice)),
            (
                "mean Dice, assembled",
                _change(first.mean_dice_assembled, newest.mean_dice_assembled),
            ),
            ("error regions found", _percent(newest.sensitivity)),
            ("attended regions right", _percent(newest.precision)),
            ("error in the top 5 %", _percent(newest.error_in_top)),
        ]
    work = evaluation.efficiency
    factor = work.factor_recorded or work.factor
    name = "times faster, as recorded" if work.factor_recorded else "times faster, as planned"
    return [*facts, (name, rows.number(factor, ",.0f"))]


def _change(first: float | None, newest: float | None) -> str:
    if first is None or newest is None or first == newest:
        return rows.number(newest, ".3f")
    return f"{first:.3f} → {newest:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _sizes(evaluation: PaperEvaluation) -> dict[str, Any]:
    ranked = [case.attention_ml for case in evaluation.sizes]
    urgent = cases_in(TOP_SHARE, len(ranked))
    datasets: dict[str, list[float]] = {}
    for case in evaluation.sizes:
        datasets.setdefault(case.dataset, []).append(case.attention_ml)
    several = len(datasets) > 1
    numbered = [f"{n} {name}" for n, name in enumerate(sorted(datasets), start=1)]
    return {
        "datasets": " · ".join(numbered),
        "distribution": plot_distribution(ranked, urgent),
        "by_dataset": (
            dataset_plot(dict(sorted(datasets.items())), ranked[urgent - 1]) if several else None
        ),
    }


def _found(evaluation: PaperEvaluation) -> dict[str, Any]:
    found = evaluation.error_found
    if found is None:
        return {"found_plot": None}
    volume, dice = found.top(), found.top(by="dice")
    sentence = (
        f"The first {volume.cases} of {found.cases} cases (top 5 %) hold {volume.found:.0%} of the "
        f"{found.total_wrong_ml:,.1f} ml that are wrong; as many random cases would hold "
        f"{volume.by_chance:.0%} (95 % of choices: {volume.chance_low:.0%} to "
        f"{volume.chance_high:.0%}), the worst cases {volume.at_best:.0%}. Counted as 1 − mean "
        f"Dice it is {dice.found:.0%}."
    )
    return {
        "found_plot": error_found_plot(found),
        "found_rows": rows.error_found_rows(found),
        "found_sentence": sentence,
    }


def _iterations(evaluation: PaperEvaluation) -> dict[str, Any]:
    tables = evaluation.iterations
    several = len(evaluation.by_iteration) > 1
    styles = {LabelKind.PSEUDO: "first", LabelKind.ASSEMBLED: "second"}
    return {
        "iterations": [
            {"title": _table_title(table), "rows": rows.iteration_rows(table)} for table in tables
        ],
        "iteration_plot": (
            iteration_plot(
                tables[0].titles, {styles[table.kind]: table.mean_dice for table in tables}
            )
            if several
            else None
        ),
        "turns": [_turn(turn) for turn in evaluation.by_iteration],
    }


def _table_title(table: IterationTable) -> str:
    what = (
        "Pseudo labels, as the ensemble predicts them"
        if table.kind is LabelKind.PSEUDO
        else "Assembled labels: the maps that a release holds"
    )
    note = rows.not_assembled_note(table)
    return f"{what} ({table.cases} cases)" + (f"; {note}" if note else "")


def _turn(turn: IterationSummary) -> dict[str, str]:
    return {
        "iteration": turn.title,
        "cases": str(turn.cases),
        "mean Dice": rows.number(turn.mean_dice, ".3f"),
        "assembled": rows.number(turn.mean_dice_assembled, ".3f"),
        "sensitivity": rows.number(turn.sensitivity),
        "precision": rows.number(turn.precision),
        "error in top 5 %": _percent(turn.error_in_top),
        "by chance": _percent(turn.error_in_top_by_chance),
        "false-positive rate": _percent(turn.false_positive_rate),
    }


def _matrices(matrix: DiceMatrix | None) -> dict[str, Any] | None:
    if matrix is None:
        return None
    return {
        "cases": matrix.cases,
        "left_out": matrix.left_out,
        "overall": _grid(matrix, None),
        "organs": [
            {"title": rows.title_of(organ), "grid": _grid(matrix, organ)} for organ in matrix.organs
        ],
    }


def _grid(matrix: DiceMatrix, organ: str | None) -> dict[str, Any]:
    def cell(place: int, column: int) -> dict[str, Any]:
        if column <= place:
            return {"text": "", "shade": None}
        value = matrix.value(matrix.raters[place], matrix.raters[column], organ)
        if value is None:
            return {"text": "–", "shade": None}
        part = max(0.0, (value - LEAST_DICE) / (1 - LEAST_DICE))
        return {"text": f"{100 * value:.1f}", "shade": f"{MOST_SHADE * part:.0f}"}

    # The last row and the first column of a symmetric matrix without its diagonal are empty.
    count = len(matrix.raters)
    return {
        "names": matrix.raters[1:],
        "rows": [
            {
                "name": matrix.raters[place],
                "cells": [cell(place, column) for column in range(1, count)],
            }
            for place in range(count - 1)
        ],
    }


def _false_positives(evaluation: PaperEvaluation) -> list[dict[str, str]] | None:
    """Rows; empty where no organ is absent, None where it is not known."""
    found = evaluation.false_positives
    if found is None:
        return None
    return rows.false_positive_rows(found) if found.organs else []


def _efficiency_note(work: Efficiency) -> str:
    note = (
        f"The paper reckons 60 minutes per organ by hand and 15 minutes per revised case: "
        f"{work.factor_per_case:g} times faster per case with {work.organs} organs."
    )
    if work.recorded is None:
        return f"{note} Nothing has been recorded yet: the loop's time is that of the top 5 %."
    per_task = work.recorded.minutes_per_task or 0.0
    people = (
        "1 annotator" if work.recorded.annotators == 1 else f"{work.recorded.annotators} annotators"
    )
    return (
        f"{note} Recorded here: {work.recorded.tasks} tasks by {people}, "
        f"{per_task:.2f} minutes each."
    )


def _words(evaluation: PaperEvaluation) -> list[tuple[str, str]]:
    rule = evaluation.detection[0].rule if evaluation.detection else None
    regions = (
        f"Attended: attention (Eq. 4) of at least {rule.threshold:g} in the reading paper, above 0 "
        f"in the reading released. Regions below {rule.min_ml:g} ml do not count. "
        if rule
        else ""
    )
    return [
        (
            "region",
            "A connected group of voxels (26 neighbours) of one organ of one case. An error region "
            f"holds voxels where pseudo label and truth differ. {regions}",
        ),
        (
            "sensitivity, precision",
            "Share of the error regions that attention meets; share of the attended regions that "
            "meet an error. None, and left out of means, where there is no such region.",
        ),
        (
            "error",
            "Of a case: millilitres of voxels where pseudo label and truth differ, summed over the "
            "compared organs; or 1 − mean Dice over the organs that are in truth or pseudo label.",
        ),
        ("truth", f"{evaluation.truth or 'none'}."),
    ]
