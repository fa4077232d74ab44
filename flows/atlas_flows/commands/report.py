"""`report`: an HTML page with the ranking or the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlas_flows.commands.options import ByOption, DatasetOption, ReadingName, ReadingOption
from atlas_flows.commands.terminal import console, places


def report(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option(dir_okay=False, help="The page; an existing one is replaced.")
    ] = Path("report.html"),
    dataset: DatasetOption = None,
    reading: ReadingOption = ReadingName.PAPER,
    by: ByOption = "disagreement",
    top: Annotated[int, typer.Option(min=0, max=100, help="Cases with pictures.")] = 5,
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="The paper's tables and figures instead.")
    ] = False,
    truth: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="True masks, for --evaluation."),
    ] = None,
    original_truth: Annotated[
        bool,
        typer.Option(
            "--original-truth", help="With --evaluation: the original labels are the truth."
        ),
    ] = False,
    nsd: Annotated[bool, typer.Option(help="With --evaluation: surface Dice too.")] = True,
) -> None:
    """Write one self-contained HTML page: the list, and pictures of its top cases.

    With --evaluation the page holds the paper's tables and figures instead: attention against
    errors, labels over iterations, error found in the top of the list, architectures, annotators,
    efficiency. What needs a truth is left out without --truth or --original-truth.

    The page opens without a network and may be passed on as it is. The list holds case ids and
    pictures of the CTs, no names; the evaluation names annotators by their accounts.

    Example: atlasloop report --evaluation --truth phantoms --output evaluation.html
    """
    from atlas_core.records import RankBy, Reading

    from atlas_flows.reports import PageRequest, write_page

    request = PageRequest(
        Reading(reading),
        RankBy(by),
        dataset,
        top,
        evaluation=evaluation,
        truth=truth,
        original_truth=original_truth,
        nsd=nsd,
    )
    with console(stderr=True).status("report") as status:
        write_page(
            places(context),
            request,
            output,
            on_case=lambda done: status.update(f"evaluating: {done} cases"),
        )
    console().print(f"report: {output}", soft_wrap=True)
