"""`evaluate attention | labels | architectures | annotators | error-found | efficiency |
false-positives`: the tables and figures of the paper, on a store of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_flows.commands.options import JsonOption, ReadingName, ReadingOption
from atlas_flows.commands.terminal import console, places, print_table, write_text

if TYPE_CHECKING:
    from atlas_core.catalog import Catalog
    from atlas_core.records import Reading
    from atlas_core.store import CaseStore
    from pydantic import BaseModel

    from atlas_flows.evaluation import (
        CaseMeasures,
        ComparisonScope,
        DiceMatrix,
        EvaluationScope,
        GroundTruth,
    )
    from atlas_flows.reports.evaluation_rows import Rows
    from atlas_flows.settings import Places

TruthOption = Annotated[
    Path | None,
    typer.Option(
        "--truth",
        exists=True,
        file_okay=False,
        help="Folder with true masks, as `atlasloop phantoms` writes it. Without it the original "
        "labels of the store are the truth.",
    ),
]
OptionalTruthOption = Annotated[
    Path | None,
    typer.Option(
        "--truth", exists=True, file_okay=False, help="Folder with true masks, to compare too."
    ),
]
CsvOption = Annotated[
    Path | None, typer.Option("--csv", dir_okay=False, help="Write the figures to this file.")
]
EnsembleOption = Annotated[
    str | None,
    typer.Option(help="Key of an ensemble as the catalog has it; default: the newest."),
]
MinRegionOption = Annotated[
    float, typer.Option(min=0, help="Smaller regions do not count, in millilitres.")
]
# Those of `attention_regions`, which `--help` need not load.
MIN_ML, THRESHOLD = 0.1, 0.2


@dataclass(frozen=True)
class _Opened:
    """What every evaluation needs."""

    here: Places
    catalog: Catalog
    store: CaseStore

    def truth(self, folder: Path | None) -> GroundTruth:
        from atlas_flows.evaluation import open_ground_truth

        return open_ground_truth(folder, self.catalog, self.store)

    def compared(self, reading: Reading, truth: Path | None) -> ComparisonScope:
        """The newest ensemble; without a folder no truth."""
        from atlas_flows.evaluation import ComparisonScope, iterations_of

        newest = iterations_of(self.catalog, _scope(reading))[-1].ensemble
        known = self.truth(truth) if truth else None
        return ComparisonScope(self.catalog, self.store, known, reading, newest)

    def measured(
        self, truth: Path | None, scope: EvaluationScope, *, attention: bool = False
    ) -> Iterator[CaseMeasures]:
        """The cases of the last iteration of `scope`."""
        from atlas_flows.evaluation import iterations_of, measure_iteration

        turn = iterations_of(self.catalog, scope)[-1]
        return measure_iteration(
            self.catalog, self.store, self.truth(truth), scope, turn, attention=attention
        )


def attention(
    context: typer.Context,
    truth: TruthOption = None,
    reading: Annotated[
        list[ReadingName] | None,
        typer.Option(help="paper or released, also both; default: every one that was scored."),
    ] = None,
    ensemble: EnsembleOption = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0, max=2, help="Attention (Eq. 4) from which a voxel is attended, reading paper."
        ),
    ] = THRESHOLD,
    min_region_ml: MinRegionOption = MIN_ML,
    share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Part of a region that must be met; 0: one voxel."),
    ] = 0.0,
    as_json: JsonOption = False,
    csv: CsvOption = None,
) -> None:
    """Compare attention with error regions, organ by organ (Table 1).

    A region is a connected group of voxels (26 neighbours). Error voxels are those where pseudo
    label and truth differ. Attended voxels are those with attention of at least --threshold in the
    reading paper, and every voxel above 0 in the reading released. Regions below --min-region-ml do
    not count. Sensitivity is the share of error regions that attention meets in one voxel (or in
    --share of them), precision the share of attended regions that meet an error. Mean ± standard
    deviation over the cases that have such regions; pooled: over the regions of all cases.

    A second table has the same for the pseudo label's own border, one voxel thick, which any
    measure must beat, where one voxel, a quarter or half of a region must be met; and how well both
    tell thick errors (what an opening with 3 × 3 × 3 voxels leaves) from right voxels within 10 mm.

    Example: atlasloop evaluate attention --truth phantoms --json
    """
    from atlas_core.records import Reading

    from atlas_flows.evaluation import DetectionTable, EvaluationScope, RegionRule, detection_table
    from atlas_flows.reports import evaluation_rows as rows

    rule = RegionRule(threshold=threshold, min_ml=min_region_ml, share=share)
    tables: list[DetectionTable] = []
    with _opened(context) as opened:
        scored = [one for one in Reading if opened.catalog.latest_ensemble(one)]
        for one in [Reading(name) for name in reading or ()] or scored or [Reading.PAPER]:
            scope = EvaluationScope(
                reading=one, rule=rule, ensembles=(ensemble,) if ensemble else ()
            )
            tables.append(detection_table(opened.catalog, opened.store, opened.truth(truth), scope))
    _print(
        {table.reading.value: table for table in tables} if as_json else None,
        csv,
        rows.as_csv(rows.detection_records(tables)),
        [
            (
                f"Attention against errors, reading {table.reading.value}, "
                f"{table.overall.cases} cases",
                rows.detection_rows(table),
            )
            for table in tables
        ]
        + [
            (f"Beside the pseudo label's border, {table.reading.value}", beside)
            for table in tables
            if (beside := rows.beside_border_rows(table))
        ],
    )


def labels(
    context: typer.Context,
    truth: TruthOption = None,
    reading: ReadingOption = ReadingName.PAPER,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(help="Keys of the iterations in order; default: all that have scored."),
    ] = None,
    nsd: Annotated[bool, typer.Option(help="Surface Dice too (needs torch).")] = True,
    as_json: JsonOption = False,
    csv: CsvOption = None,
) -> None:
    """Dice and NSD of every organ before and after each iteration (Table 5).

    An iteration is an ensemble that has scored. Two tables: of its pseudo labels, and of the maps
    that were assembled from them before the next one scored, which is what a release holds. Cases
    that were not assembled are left out of the second. NSD has a tolerance of 1 mm. Only cases that
    every iteration has. Mean: over organs. Marks: Wilcoxon's signed-rank test against the iteration
    before, * p < 0.05, ** p < 0.01, *** p < 0.001, ns.

    Example: atlasloop evaluate labels --truth phantoms --csv table5.csv
    """
    from atlas_core.records import Reading

    from atlas_flows.evaluation import EvaluationScope, iteration_tables
    from atlas_flows.reports import evaluation_rows as rows

    scope = EvaluationScope(reading=Reading(reading), ensembles=tuple(ensemble or ()), nsd=nsd)
    with _opened(context) as opened:
        tables = iteration_tables(opened.catalog, opened.store, opened.truth(truth), scope)
    for note in filter(None, map(rows.not_assembled_note, tables)):
        console(stderr=True).print(f"{note} (run `atlasloop assemble` in each iteration)")
    _print(
        {table.kind.value: table for table in tables} if as_json else None,
        csv,
        rows.as_csv(rows.iteration_records(tables)),
        [
            (
                f"{table.kind.value} labels, {table.cases} cases, mean ± standard deviation",
                rows.iteration_rows(table),
            )
            for table in tables
        ],
    )


def architectures(
    context: typer.Context,
    truth: OptionalTruthOption = None,
    reading: ReadingOption = ReadingName.PAPER,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N cases.")] = None,
    as_json: JsonOption = False,
    csv: CsvOption = None,
) -> None:
    """Dice between architectures, their mean, and the truth (Fig. 8a).

    Each model of the newest ensemble predicts each case by itself, which needs the stack (atlasloop
    up); its label map is cached with the case, so that nothing is predicted twice. Dice
    is averaged over cases for each organ, then over organs.

    Example: atlasloop evaluate architectures --truth phantoms --limit 20
    """
    from atlas_core.records import Reading
    from atlasloop.client import AttentionClient

    from atlas_flows.evaluation import architecture_matrix

    with (
        _opened(context) as opened,
        AttentionClient(opened.here.attention_address) as client,
    ):
        matrix = architecture_matrix(opened.compared(Reading(reading), truth), client, limit=limit)
    _print_matrix("Dice (%) between architectures", matrix, as_json, csv)


def annotators(
    context: typer.Context,
    truth: OptionalTruthOption = None,
    reading: ReadingOption = ReadingName.PAPER,
    dependent: Annotated[
        bool,
        typer.Option("--dependent", help="Also pairs where one was made from the other's label."),
    ] = False,
    as_json: JsonOption = False,
    csv: CsvOption = None,
) -> None:
    """Dice between annotators of the same case and organ, with pseudo label and truth (Fig. 8b).

    Of each author the newest label version of a case and organ counts, also one that is kept beside
    the label in force. Pairs of annotators are independent: neither label was made from the other.

    Example: atlasloop evaluate annotators --truth phantoms
    """
    from atlas_core.records import Reading

    from atlas_flows.evaluation import annotator_matrix

    with _opened(context) as opened:
        matrix = annotator_matrix(
            opened.compared(Reading(reading), truth), independent=not dependent
        )
    if matrix.left_out:
        console(stderr=True).print(
            f"{matrix.left_out} pairs are left out: one was made from the other (--dependent)"
        )
    _print_matrix("Dice (%) between annotators", matrix, as_json, csv)


def error_found(
    context: typer.Context,
    truth: TruthOption = None,
    reading: ReadingOption = ReadingName.PAPER,
    ensemble: EnsembleOption = None,
    as_json: JsonOption = False,
    csv: CsvOption = None,
) -> None:
    """How much of all true error lies in the top 1 to 20 % of the priority list (Fig. 4).

    Error is counted twice: in millilitres of voxels where pseudo label and truth differ, and as
    1 − mean Dice of the case. By chance: the expectation for as many random cases, and the interval
    that holds 95 % of random choices. At best: a list sorted by true error.

    Example: atlasloop evaluate error-found --truth phantoms --csv curve.csv
    """
    from atlas_core.records import Reading

    from atlas_flows.evaluation import EvaluationScope
    from atlas_flows.evaluation import measure_error_found as curve
    from atlas_flows.reports import evaluation_rows as rows

    scope = EvaluationScope(
        reading=Reading(reading), ensembles=(ensemble,) if ensemble else (), nsd=False
    )
    with _opened(context) as opened:
        found = curve([case.error() for case in opened.measured(truth, scope)])
    _print(
        found if as_json else None,
        csv,
        rows.as_csv(rows.error_found_records(found)),
        [
            (
                f"True error in the top of the list, {found.cases} cases, "
                f"{found.total_wrong_ml:.1f} ml wrong",
                rows.error_found_rows(found),
            )
        ],
    )


def efficiency(
    context: typer.Context,
    minutes_per_organ: Annotated[
        float, typer.Option(min=0.1, help="To annotate one organ of one case by hand.")
    ] = 60.0,
    as_json: JsonOption = False,
    csv: CsvOption = None,
) -> None:
    """Annotator time in the loop against annotating everything by hand (§3.3).

    By hand: every organ of every case at --minutes-per-organ (the paper's 60), at the minutes of
    its Table 4, and only the organs without an original label. In the loop: revised and confirmed
    cases (before anybody has revised: the top 5 %) at 15 minutes, and as the review service
    recorded it. A day has 8 hours, a week 5 days, a year 52 weeks.

    Example: atlasloop evaluate efficiency
    """
    from atlas_flows.evaluation import EvaluationScope, efficiency_of
    from atlas_flows.reports import evaluation_rows as rows

    with _opened(context) as opened:
        work = efficiency_of(opened.catalog, EvaluationScope(minutes_per_organ=minutes_per_organ))
    table = rows.efficiency_rows(work)
    _print(
        work if as_json else None,
        csv,
        rows.as_csv([dict(row) for row in table]),
        [("Annotator time", table)],
    )


def false_positives(
    context: typer.Context,
    truth: TruthOption = None,
    reading: ReadingOption = ReadingName.PAPER,
    ensemble: EnsembleOption = None,
    min_region_ml: MinRegionOption = MIN_ML,
    as_json: JsonOption = False,
    csv: CsvOption = None,
) -> None:
    """False positives of the models where an organ is absent (§5).

    For each organ: of the cases whose truth lacks it, the share whose pseudo label holds at least
    one connected region of it of --min-region-ml or more; and how many regions in all.

    Example: atlasloop evaluate false-positives --truth phantoms
    """
    from atlas_core.records import Reading

    from atlas_flows.evaluation import EvaluationScope, RegionRule
    from atlas_flows.evaluation import false_positive_rates as rates
    from atlas_flows.reports import evaluation_rows as rows

    scope = EvaluationScope(
        reading=Reading(reading),
        ensembles=(ensemble,) if ensemble else (),
        rule=RegionRule(min_ml=min_region_ml),
        nsd=False,
    )
    with _opened(context) as opened:
        found = rates(
            one for case in opened.measured(truth, scope) for one in case.false_positives()
        )
    _print(
        found if as_json else None,
        csv,
        rows.as_csv(rows.false_positive_records(found)),
        [("False positives where the organ is absent", rows.false_positive_rows(found))],
    )


def add_to(app: typer.Typer) -> None:
    """Put the commands into the group `evaluate`."""
    app.command("attention")(attention)
    app.command("labels")(labels)
    app.command("architectures")(architectures)
    app.command("annotators")(annotators)
    app.command("error-found")(error_found)
    app.command("efficiency")(efficiency)
    app.command("false-positives")(false_positives)


def _scope(reading: Reading) -> EvaluationScope:
    from atlas_flows.evaluation import EvaluationScope

    return EvaluationScope(reading=reading)


@contextmanager
def _opened(context: typer.Context) -> Iterator[_Opened]:
    from atlas_core.catalog import Catalog
    from atlas_core.store import CaseStore

    here = places(context)
    with Catalog.open(here.catalog_url) as catalog:
        yield _Opened(here, catalog, CaseStore(here.store))


def _print_matrix(title: str, matrix: DiceMatrix, as_json: bool, csv: Path | None) -> None:
    from atlas_flows.reports import evaluation_rows as rows

    _print(
        matrix if as_json else None,
        csv,
        rows.as_csv(rows.matrix_records(matrix)),
        [
            (
                f"{title}, mean of {len(matrix.organs)} organs, {matrix.cases} cases",
                rows.matrix_rows(matrix),
            ),
            *((rows.title_of(organ), rows.matrix_rows(matrix, organ)) for organ in matrix.organs),
        ],
    )


def _print(
    value: BaseModel | dict[str, BaseModel] | None,
    csv: Path | None,
    csv_text: str,
    tables: Sequence[tuple[str, Rows]],
) -> None:
    """JSON to stdout, CSV to its file, or tables for people."""
    import json

    if csv is not None:
        write_text(csv, csv_text)
    if isinstance(value, dict):
        parts = {name: part.model_dump(mode="json") for name, part in value.items()}
        write_text(None, json.dumps(parts, indent=2))
    elif value is not None:
        write_text(None, value.model_dump_json(indent=2))
    elif csv is not None:
        console().print(f"written: {csv}", soft_wrap=True)
    else:
        for title, rows in tables:
            print_table(title, rows, numbers=list(rows[0])[1:] if rows else ())
