"""`atlasloop score`: the flow, run in this process and seen in the Prefect UI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from atlas_flows.commands.case_progress import case_progress, show_failures
from atlas_flows.commands.options import (
    DatasetOption,
    EnsembleOption,
    InFlightOption,
    ReadingName,
    ReadingOption,
)
from atlas_flows.commands.run_here import run_here
from atlas_flows.commands.terminal import console, places

if TYPE_CHECKING:
    from atlas_flows.scoring import ScoreRequest, ScoreSummary
    from atlas_flows.settings import Places


def score(
    context: typer.Context,
    dataset: DatasetOption = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Only this case; may be given several times.")
    ] = None,
    reading: ReadingOption = ReadingName.PAPER,
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME@T, several times, in place of an ensemble."),
    ] = None,
    ensemble: EnsembleOption = None,
    in_flight: InFlightOption = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many cases.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what is scored already.")] = False,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a service that does not answer.")
    ] = 300.0,
    shards: Annotated[
        int,
        typer.Option(min=1, max=256, help="Runs in the work pool that share the cases; 1: none."),
    ] = 1,
) -> None:
    """Predict, fuse and rank what is not scored yet (flow `score`).

    Needs the stack (atlasloop up). Interrupted at any point, the next run goes on where it ended.
    Exit status 1 if some cases could not be scored.

    Example: atlasloop score --dataset BTCV --ensemble trial --in-flight 4
    """
    from atlas_core.records import Reading

    from atlas_flows.runs import CasesFailed
    from atlas_flows.scoring import ScoreRequest

    request = ScoreRequest(
        reading=Reading(reading),
        dataset=dataset,
        cases=tuple(case or ()),
        models=tuple(model or ()),
        force=force,
        limit=limit,
        ensemble=ensemble,
    )
    try:
        summary = run_score(
            places(context), request, in_flight=in_flight, patience_s=patience, shards=shards
        )
    except CasesFailed as failed:
        show_summary(failed.summary)
        raise typer.Exit(1) from None
    show_summary(summary)


def run_score(
    here: Places, request: ScoreRequest, *, in_flight: int, patience_s: float, shards: int = 1
) -> ScoreSummary:
    """Run the flow in this process, with a progress bar.

    Raises:
        Unavailable: no Prefect server, or no attention service.
        CasesFailed: some cases are not scored.
    """
    from atlas_flows.scoring import log

    with (
        run_here(here, "score", "what is scored stays scored"),
        case_progress("scoring", log),
    ):
        from atlas_flows.scoring.flow import score as score_flow

        return score_flow(
            dataset=request.dataset,
            reading=request.reading,
            cases=list(request.cases),
            models=list(request.models),
            in_flight=in_flight,
            limit=request.limit,
            force=request.force,
            patience_s=patience_s,
            ensemble=request.ensemble,
            shards=shards,
        )


def show_summary(summary: ScoreSummary) -> None:
    """One sentence, and a table of what failed and why."""
    from atlas_flows.runs import Outcome

    console().print(
        f"{summary.count(Outcome.SCORED)} scored, {summary.count(Outcome.FOUND)} found in the "
        f"store, {summary.skipped} scored before, {len(summary.failures)} not scored "
        f"({summary.seconds:.1f} s, reading {summary.reading.value})"
    )
    if not summary.outcomes and not summary.skipped:
        console().print("There is no case to score; bring some in with `atlasloop import`.")
    show_failures(summary, "scored")
