"""`atlasloop assemble`: the flow, run in this process and seen in the Prefect UI."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_flows.commands.case_progress import case_progress, show_failures
from atlas_flows.commands.options import DatasetOption, InFlightOption, JsonOption, ReadingName
from atlas_flows.commands.run_here import run_here
from atlas_flows.commands.terminal import console, places, print_table

if TYPE_CHECKING:
    from atlas_core.assembly import PostProcessing

    from atlas_flows.assembly import AssemblyRequest, AssemblySummary
    from atlas_flows.settings import Places


ROWS_SHOWN = 100
"""Failures that are listed; --json has all of them."""


def assemble(
    context: typer.Context,
    dataset: DatasetOption = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Only this case; may be given several times.")
    ] = None,
    reading: Annotated[
        ReadingName, typer.Option(help="Pseudo labels of the scores under this reading.")
    ] = ReadingName.PAPER,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or NAME@T, several times: pseudo labels of exactly these models. "
            "Default: of the newest ensemble that scored the case."
        ),
    ] = None,
    largest: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORGAN=N",
            help="Keep so many connected components of a pseudo label; several times.",
        ),
    ] = None,
    min_ml: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORGAN=ML",
            help="Drop smaller components of a pseudo label; several times.",
        ),
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Also one mask file per organ.")] = False,
    in_flight: InFlightOption = 2,
    force: Annotated[bool, typer.Option("--force", help="Also what is up to date.")] = False,
    as_json: JsonOption = False,
) -> None:
    """One label map per case: original over revised over pseudo labels (flow `assemble`).

    Needs the Prefect server (atlasloop up). Interrupted at any point, the next run goes on where
    it ended. Exit status 1 if some cases could not be assembled.

    Example: atlasloop assemble --largest liver=1 --min-ml spleen=0.5
    """
    from atlas_core.records import Reading

    from atlas_flows.assembly import AssemblyRequest
    from atlas_flows.runs import CasesFailed

    request = AssemblyRequest(
        dataset=dataset,
        cases=tuple(case or ()),
        reading=Reading(reading),
        models=tuple(model or ()),
        post_processing=post_processing_of(largest or [], min_ml or []),
        masks=masks,
        force=force,
    )
    failed = False
    try:
        summary = run_assemble(places(context), request, in_flight=in_flight)
    except CasesFailed as error:
        summary, failed = error.summary, True
    if as_json:
        sys.stdout.write(f"{summary.model_dump_json(indent=2)}\n")
    else:
        show_summary(summary)
    if failed:
        raise typer.Exit(1)


def post_processing_of(largest: list[str], min_ml: list[str]) -> dict[str, PostProcessing]:
    """The rules that options like ``liver=1`` give.

    Raises:
        InvalidInput: not ORGAN=NUMBER, or a number that cannot be.
    """
    from atlas_core.assembly import PostProcessing
    from atlas_core.errors import InvalidInput
    from pydantic import ValidationError

    wanted: dict[str, dict[str, str]] = {}
    for field, texts in (("largest", largest), ("min_ml", min_ml)):
        for text in texts:
            organ, _, number = text.partition("=")
            wanted.setdefault(organ.strip(), {})[field] = number.strip()
    try:
        return {organ: PostProcessing.model_validate(rule) for organ, rule in wanted.items()}
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidInput(
            "malformed post-processing",
            expected=f"ORGAN=NUMBER ({first['msg']})",
            got=", ".join([*largest, *min_ml]),
        ) from None


def run_assemble(here: Places, request: AssemblyRequest, *, in_flight: int) -> AssemblySummary:
    """Run the flow in this process, with a progress bar.

    Raises:
        Unavailable: no Prefect server.
        CasesFailed: some cases are not assembled.
    """
    with (
        run_here(here, "assemble", "what is assembled stays assembled"),
        case_progress("assembling"),
    ):
        from atlas_flows.assembly.flow import assemble as assemble_flow

        return assemble_flow(
            dataset=request.dataset,
            cases=list(request.cases),
            reading=request.reading,
            models=list(request.models),
            post_processing=dict(request.post_processing),
            in_flight=in_flight,
            force=request.force,
            masks=request.masks,
        )


def show_summary(summary: AssemblySummary) -> None:
    """One sentence, where the labels come from, and a table of what failed and why."""
    console().print(
        f"{summary.assembled} assembled, {summary.skipped} up to date, "
        f"{len(summary.failures)} not assembled ({summary.seconds:.1f} s)"
    )
    rows = [
        {name: str(value) for name, value in organ.model_dump().items()} for organ in summary.organs
    ]
    print_table("Cases by source", rows, numbers=[name for name in rows[0] if name != "organ"])
    show_failures(summary, "assembled", ROWS_SHOWN)
