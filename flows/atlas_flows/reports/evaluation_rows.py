"""The paper's tables as rows for a terminal, and as lines of CSV; the same words in both places."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from atlas_models.evaluation import Spread

from atlas_flows.evaluation import (
    DetectionTable,
    DiceMatrix,
    Efficiency,
    ErrorFound,
    FalsePositives,
    IterationTable,
    WorkTime,
)

Rows = list[dict[str, str]]


def title_of(organ: str) -> str:
    """``kidney_left`` as people write it."""
    return organ.replace("_", " ")


def number(value: float | None, form: str = ".2f") -> str:
    """`value` in `form`; a dash for None."""
    return "–" if value is None else format(value, form)


def spread(value: Spread) -> str:
    """Mean ± deviation with two decimals, as Table 1 has them."""
    return "–" if value.mean is None else f"{value.mean:.2f} ± {value.std or 0:.2f}"


def detection_rows(table: DetectionTable) -> Rows:
    """Table 1, an organ per row."""
    return [
        {
            "organ": title_of(row.organ),
            "sensitivity": spread(row.sensitivity_by_case),
            "precision": spread(row.precision_by_case),
            "pooled sens.": number(row.sensitivity),
            "pooled prec.": number(row.precision),
            "errors found": f"{row.counts.errors_found} of {row.counts.error_regions}",
            "attended right": f"{row.counts.attended_right} of {row.counts.attended_regions}",
            "error (ml)": number(row.counts.error_ml, ".1f"),
            "attended (ml)": number(row.counts.attended_ml, ".1f"),
        }
        for row in (*table.organs, table.overall)
    ]


def beside_border_rows(table: DetectionTable) -> Rows:
    """Attention and the pseudo label's own border: regions met, and thick errors told apart."""
    beside = table.beside_border
    if beside is None:
        return []
    by_name = {score.score: score for score in beside.thick.scores}

    def row(measure: str, attention: float | None, border: float | None) -> dict[str, str]:
        return {"measure": measure, "attention": number(attention), "border": number(border)}

    rows = []
    for one in beside.shares:
        met = f"{one.share:.0%} of a region" if one.share else "one voxel"
        rows.append(row(f"sensitivity, {met}", one.sensitivity, one.border_sensitivity))
        rows.append(row(f"precision, {met}", one.precision, one.border_precision))
    attention, border = by_name["attention"], by_name["border"]
    rows.append(row("AUROC of thick errors", attention.auroc, border.auroc))
    rows.append(
        row(
            f"average precision (by chance {number(beside.thick.thick_share)})",
            attention.average_precision,
            border.average_precision,
        )
    )
    return rows


def iteration_rows(table: IterationTable) -> Rows:
    """Table 5, an organ per row; figures in percent, with the mark of the change before them."""
    rows = []
    for row in (*table.organs, table.mean):
        cells = {"organ": title_of(row.organ)}
        for place, title in enumerate(table.titles):
            cells[f"{title} Dice (%)"] = row.dice[place].text
            if any(figure.spread.count for one in table.organs for figure in one.nsd):
                cells[f"{title} NSD (%)"] = row.nsd[place].text
        rows.append(cells)
    return rows


def not_assembled_note(table: IterationTable) -> str:
    """What a table of assembled labels lacks, for people; empty where nothing is missing."""
    missing = [
        f"{count} of {title}"
        for title, count in zip(table.titles, table.not_assembled, strict=True)
        if count
    ]
    return f"cases never assembled, and left out: {', '.join(missing)}" if missing else ""


def error_found_rows(found: ErrorFound) -> Rows:
    """The curve of Fig. 4's claim, a share per row."""
    return [
        {
            "top of list": f"{volume.share:.0%}",
            "cases": str(volume.cases),
            "error in ml": f"{volume.found:.0%}",
            "by chance": f"{volume.by_chance:.0%}",
            "95 % of chance": f"{volume.chance_low:.0%}–{volume.chance_high:.0%}",
            "at best": f"{volume.at_best:.0%}",
            "error as 1−Dice": f"{dice.found:.0%}",
            "95 % of chance ": f"{dice.chance_low:.0%}–{dice.chance_high:.0%}",
            "at best ": f"{dice.at_best:.0%}",
        }
        for volume, dice in zip(found.by_volume, found.by_dice, strict=True)
    ]


def matrix_rows(matrix: DiceMatrix, organ: str | None = None) -> Rows:
    """Fig. 8: mean Dice in percent of every two sources; of one organ, or over all."""
    rows = []
    for place, one in enumerate(matrix.raters):
        row = {"": one}
        for column, other in enumerate(matrix.raters):
            # The matrix is symmetric: below its diagonal stands nothing new.
            row[other] = "" if column <= place else _percent(matrix.value(one, other, organ))
        rows.append(row)
    return rows


def false_positive_rows(found: FalsePositives) -> Rows:
    """§5, an organ per row."""
    return [
        {
            "organ": title_of(row.organ),
            "cases without it": str(row.cases_without),
            "with false positives": str(row.cases_with_false),
            "rate": "–" if row.rate is None else f"{row.rate:.1%}",
            "false regions": str(row.regions),
            "ml": f"{row.ml:.1f}",
        }
        for row in (*found.organs, found.overall)
    ]


def efficiency_rows(work: Efficiency) -> Rows:
    """§3.3, a way of working per row."""
    rows = [
        _work(
            f"by hand, {work.minutes_per_organ:g} min per organ",
            f"{work.cases} cases × {work.organs} organs",
            work.by_hand,
            work.by_hand,
        ),
        _work(
            "by hand, minutes of Table 4",
            f"{work.cases} cases × {work.organs} organs",
            work.by_hand_measured,
            work.by_hand,
        ),
        _work(
            "by hand, only missing labels",
            f"{work.missing_labels} organs",
            work.by_hand_missing,
            work.by_hand,
        ),
        _work(
            f"in the loop, {work.minutes_per_case:g} min per case",
            f"{work.revised_cases} cases",
            work.in_loop,
            work.by_hand,
        ),
    ]
    if work.in_loop_recorded and work.recorded:
        rows.append(
            _work(
                "in the loop, as recorded",
                f"{work.recorded.tasks} tasks",
                work.in_loop_recorded,
                work.by_hand,
            )
        )
    return rows


def _work(way: str, what: str, time: WorkTime, by_hand: WorkTime) -> dict[str, str]:
    return {
        "way": way,
        "what": what,
        "minutes": f"{time.minutes:,.1f}",
        "8-hour days": f"{time.days:,.2f}",
        "weeks": f"{time.weeks:,.2f}",
        "years": f"{time.years:,.2f}",
        "times faster": f"{by_hand.minutes / time.minutes:,.1f}" if time.minutes else "–",
    }


def as_csv(rows: Sequence[dict[str, object]]) -> str:
    """`rows` with the keys of the first as heads; None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def detection_records(tables: Iterable[DetectionTable]) -> list[dict[str, object]]:
    """Table 1 in full precision, a reading and organ per line."""
    return [
        {
            "reading": table.reading.value,
            "organ": row.organ,
            "cases": row.cases,
            "sensitivity": row.sensitivity,
            "precision": row.precision,
            "sensitivity_mean": row.sensitivity_by_case.mean,
            "sensitivity_std": row.sensitivity_by_case.std,
            "precision_mean": row.precision_by_case.mean,
            "precision_std": row.precision_by_case.std,
            **row.counts.model_dump(),
        }
        for table in tables
        for row in (*table.organs, table.overall)
    ]


def iteration_records(tables: Iterable[IterationTable]) -> list[dict[str, object]]:
    """Table 5 in full precision, a kind of label, iteration and organ per line."""
    records: list[dict[str, object]] = []
    for table in tables:
        for row in (*table.organs, table.mean):
            for place, title in enumerate(table.titles):
                record: dict[str, object] = {
                    "labels": table.kind.value,
                    "iteration": place,
                    "title": title,
                    "organ": row.organ,
                }
                for name, figure in (("dice", row.dice[place]), ("nsd", row.nsd[place])):
                    record[f"{name}_mean"] = figure.spread.mean
                    record[f"{name}_std"] = figure.spread.std
                    record[f"{name}_cases"] = figure.spread.count
                    record[f"{name}_p"] = figure.change.p_value if figure.change else None
                records.append(record)
    return records


def error_found_records(found: ErrorFound) -> list[dict[str, object]]:
    """The curve in full precision, a measure and share per line."""
    return [
        {"error": name, **point.model_dump()}
        for name, curve in (("ml", found.by_volume), ("1 - dice", found.by_dice))
        for point in curve
    ]


def matrix_records(matrix: DiceMatrix) -> list[dict[str, object]]:
    """Fig. 8 in full precision, a pair and organ per line."""
    return [
        {
            "one": cell.one,
            "other": cell.other,
            "organ": organ,
            "dice_mean": value.mean,
            "dice_std": value.std,
            "cases": value.count,
        }
        for cell in matrix.cells
        for organ, value in cell.organs.items()
    ]


def false_positive_records(found: FalsePositives) -> list[dict[str, object]]:
    """§5 in full precision, an organ per line."""
    return [row.model_dump() for row in (*found.organs, found.overall)]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
