"""`atlasloop score`: the flow, run in this process and seen in the Prefect UI."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from atlas_core.errors import Unavailable
from atlas_core.records import Reading

from atlas_flows.commands.terminal import console, places, print_table, show_error

if TYPE_CHECKING:
    from rich.console import Console

    from atlas_flows.scoring import CaseOutcome, Observer, ScoreRequest, ScoreSummary
    from atlas_flows.settings import Places

ReadingOption = Annotated[
    Reading, typer.Option(help="paper: Eq. 1–4. released: thresholds of the published code.")
]
DatasetOption = Annotated[str | None, typer.Option(help="Only the cases of this dataset.")]


def score(
    context: typer.Context,
    dataset: DatasetOption = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Only this case; may be given several times.")
    ] = None,
    reading: ReadingOption = Reading.PAPER,
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME@T, several times; default: the whole ensemble."),
    ] = None,
    in_flight: Annotated[
        int, typer.Option(min=1, max=64, help="Cases worked on at the same time.")
    ] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many cases.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what is scored already.")] = False,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a service that is away.")
    ] = 300.0,
) -> None:
    """Predict, fuse and rank what is not scored yet (flow `score`).

    Needs the stack (atlasloop up). Interrupted at any point, the next run goes on where it ended.
    Exit status 1 if some cases could not be scored.

    Example: atlasloop score --dataset BTCV --in-flight 4
    """
    from atlas_flows.scoring import CasesFailed, ScoreRequest

    request = ScoreRequest(
        reading=reading,
        dataset=dataset,
        cases=tuple(case or ()),
        models=tuple(model or ()),
        force=force,
        limit=limit,
    )
    try:
        summary = run_score(places(context), request, in_flight=in_flight, patience_s=patience)
    except CasesFailed as failed:
        show_summary(failed.summary)
        raise typer.Exit(1) from None
    show_summary(summary)


def run_score(
    here: Places, request: ScoreRequest, *, in_flight: int, patience_s: float
) -> ScoreSummary:
    """Run the flow in this process, with a progress bar.

    Raises:
        Unavailable: no Prefect server, or no attention service.
        CasesFailed: some cases are not scored.
    """
    here.enter_prefect(quiet=True)
    here.require_prefect()
    # Only now: Prefect reads its settings when it is imported.
    import httpx
    from prefect import tags

    from atlas_flows.interrupted import mark_interrupted_runs, process_tag
    from atlas_flows.score import score as score_flow
    from atlas_flows.scoring import observed_by

    try:
        mark_interrupted_runs(score_flow.name)
        with _progress_bar() as observer, observed_by(observer), tags(process_tag()):
            return score_flow(
                dataset=request.dataset,
                reading=request.reading,
                cases=list(request.cases),
                models=list(request.models),
                in_flight=in_flight,
                limit=request.limit,
                force=request.force,
                patience_s=patience_s,
            )
    except httpx.HTTPError as error:
        raise Unavailable(
            "the Prefect server went away during the run",
            got=type(error).__name__,
            remedy="run again after `atlasloop up`: what is scored stays scored",
        ) from None


def show_summary(summary: ScoreSummary) -> None:
    """One sentence, and a table of what failed and why."""
    from atlas_flows.scoring import Outcome

    console().print(
        f"{summary.count(Outcome.SCORED)} scored, {summary.count(Outcome.FOUND)} found in the "
        f"store, {summary.skipped} scored before, {len(summary.failures)} not scored "
        f"({summary.seconds:.1f} s, reading {summary.reading.value})"
    )
    if not summary.outcomes and not summary.skipped:
        console().print("There is no case to score; bring some in with `atlasloop import`.")
    if summary.failures:
        print_table(
            "Not scored",
            [
                {"case": case.case_id, "outcome": case.outcome.value, "why": case.message}
                for case in summary.failures
            ],
        )
        show_error(f"{len(summary.failures)} cases are not scored")


@contextmanager
def _progress_bar() -> Iterator[Observer]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
    ) as progress:
        task = progress.add_task("cases", total=None)

        def show(done: int, total: int, outcome: CaseOutcome) -> None:
            progress.update(task, completed=done, total=total)
            if not outcome.good:
                progress.console.print(f"{outcome.case_id}: {outcome.message}", style="red")

        with _warnings_to(progress.console):
            yield show


@contextmanager
def _warnings_to(terminal: Console) -> Iterator[None]:
    """Shows what the run waits for; Prefect's own console output is switched off."""
    from rich.logging import RichHandler

    handler = RichHandler(console=terminal, show_time=False, show_path=False)
    handler.setLevel(logging.WARNING)
    logger = logging.getLogger("atlas_flows.scoring")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
