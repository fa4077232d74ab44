"""`report`: an HTML page with the ranking or the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_flows.commands.options import ByOption, DatasetOption, ReadingName, ReadingOption
from atlas_flows.commands.terminal import console, places, write_text

if TYPE_CHECKING:
    from atlas_core.catalog import Catalog
    from atlas_core.records import Reading
    from atlas_core.store import CaseStore


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
    from atlas_core.catalog import Catalog
    from atlas_core.errors import InvalidInput
    from atlas_core.records import RankBy, Reading
    from atlas_core.store import CaseStore

    if not evaluation and (truth is not None or original_truth):
        raise InvalidInput("the list needs no truth", remedy="add --evaluation")
    if evaluation and dataset is not None:
        raise InvalidInput("an evaluation is of all datasets", remedy="leave out --dataset")
    if truth is not None and original_truth:
        raise InvalidInput(
            "--truth and --original-truth exclude each other", remedy="give one of them"
        )
    here = places(context)
    with Catalog.open(here.catalog_url) as catalog:
        store = CaseStore(here.store)
        if evaluation:
            wanted = truth is not None or original_truth
            page = _evaluation_page(catalog, store, Reading(reading), truth, wanted, nsd)
        else:
            from atlas_flows.reports import ReportScope, RunFacts, build_report

            scope = ReportScope(Reading(reading), RankBy(by), dataset, top)
            page = build_report(catalog, store, scope, RunFacts())
    write_text(output, page)
    console().print(f"report: {output}", soft_wrap=True)


def _evaluation_page(
    catalog: Catalog,
    store: CaseStore,
    reading: Reading,
    folder: Path | None,
    with_truth: bool,
    nsd: bool,
) -> str:
    from atlas_flows.evaluation import EvaluationScope, evaluate_all, open_ground_truth
    from atlas_flows.reports import build_loop_report

    truth = open_ground_truth(folder, catalog, store) if with_truth else None
    with console(stderr=True).status("evaluating") as status:
        found = evaluate_all(
            catalog,
            store,
            truth,
            EvaluationScope(reading=reading, nsd=nsd),
            on_case=lambda done: status.update(f"evaluating: {done} cases"),
        )
    return build_loop_report(found)
