"""`ranking`, `evaluate ranking`, `report` and `demo`: results for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from atlas_core.records import RankBy, Reading

from atlas_flows.commands.scoring import DatasetOption, ReadingOption
from atlas_flows.commands.terminal import console, places, print_table, write_text

if TYPE_CHECKING:
    from atlas_core.case_store import CaseStore
    from atlas_core.catalog import Catalog

    from atlas_flows.agreement import RankingEvaluation

ByOption = Annotated[
    RankBy,
    typer.Option(
        "--by",
        help="size: attention size, the paper's. relative: attention of each organ against its own "
        "volume, averaged; large patients do not come first.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def ranking(
    context: typer.Context,
    dataset: DatasetOption = None,
    reading: ReadingOption = Reading.PAPER,
    by: ByOption = RankBy.SIZE,
    top: Annotated[int | None, typer.Option(min=1, help="Only the first N cases.")] = None,
    share: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Only this part of the list; 0.05 is the paper's."),
    ] = None,
    as_json: JsonOption = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", dir_okay=False, help="Write the list to this file.")
    ] = None,
) -> None:
    """Show the priority list: which cases need an annotator most.

    The attention size of a case is summed over its organs; those with an original label count
    nothing, and nor do they in the list by relative attention. The list is that of the newest
    ensemble.

    Example: atlasloop ranking --share 0.05 --csv revise-next.csv
    """
    from atlas_core.catalog import Catalog
    from atlas_core.errors import InvalidInput
    from atlas_core.organs import ABDOMEN_ATLAS

    from atlas_flows import priority_list

    if top is not None and share is not None:
        raise InvalidInput("--top and --share exclude each other", remedy="give one of them")
    with Catalog.open(places(context).catalog_url) as catalog:
        if dataset is not None:
            catalog.dataset(dataset)  # a typing error must not look like an empty dataset
        cases = catalog.ranking(reading, dataset=dataset, by=by)
    shown = cases[:top] if share is None else cases[: priority_list.cases_in(share, len(cases))]
    if csv is not None:
        write_text(csv, priority_list.as_csv(shown, ABDOMEN_ATLAS.names))
    if as_json:
        write_text(None, priority_list.as_json(shown, reading, by))
    elif csv is not None:
        console().print(f"{len(shown)} of {len(cases)} cases written to {csv}")
    elif not shown:
        console().print("No case is scored yet; run `atlasloop score`.")
    else:
        print_table(
            f"Priority list: {len(shown)} of {len(cases)} cases, reading {reading.value}",
            priority_list.as_rows(shown),
            numbers=("rank", "attention (ml)", "relative"),
        )


def evaluate_ranking(
    context: typer.Context,
    truth: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of `atlasloop phantoms`, with the true masks.",
        ),
    ],
    reading: ReadingOption = Reading.PAPER,
    by: ByOption = RankBy.SIZE,
    as_json: JsonOption = False,
) -> None:
    """Compare the priority list with the true errors of phantoms.

    Prints the Spearman correlation between attention and 1 − mean Dice of the pseudo labels,
    and how many of the deliberately hard cases stand in the top 10 % of the list.

    Example: atlasloop evaluate ranking --truth phantoms --json
    """
    from atlas_core.case_store import CaseStore
    from atlas_core.catalog import Catalog

    from atlas_flows.agreement import evaluate
    from atlas_flows.truth import case_errors

    here = places(context)
    with Catalog.open(here.catalog_url) as catalog:
        result = evaluate(case_errors(truth, catalog, CaseStore(here.store), reading), by)
    if as_json:
        write_text(None, result.model_dump_json(indent=2))
        return
    show_evaluation(result)


def show_evaluation(result: RankingEvaluation) -> None:
    """The comparison of list and truth in a few lines."""

    def shown(value: float | None, form: str = ".2f") -> str:
        return "–" if value is None else format(value, form)

    hard = result.hard
    lines = [
        f"{result.cases} cases; mean Dice {shown(result.mean_dice)}, ordinary "
        f"{shown(result.mean_dice_ordinary)}, hard {shown(result.mean_dice_hard)}",
        f"Spearman correlation of attention ({result.by.value}) and true error: "
        f"{shown(result.spearman)} (p = {shown(result.spearman_p, '.1g')})",
        f"hard cases in the top {hard.share:.0%} ({hard.cases} cases): {hard.hard_found} of "
        f"{hard.hard_total}; by chance {hard.hard_found_by_chance:.1f}, at best "
        f"{hard.hard_found_at_best}",
    ]
    lines += [
        f"true error in the top {top.share:.0%} ({top.cases} cases): {top.error_share:.0%}; by "
        f"chance {top.error_share_by_chance:.0%}, at best {top.error_share_at_best:.0%}"
        for top in result.top
    ]
    for line in lines:
        console().print(line)


def report(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option(dir_okay=False, help="The page; an existing one is replaced.")
    ] = Path("report.html"),
    dataset: DatasetOption = None,
    reading: ReadingOption = Reading.PAPER,
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
    from atlas_core.case_store import CaseStore
    from atlas_core.catalog import Catalog
    from atlas_core.errors import InvalidInput

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
            page = _evaluation_page(catalog, store, reading, truth, wanted, nsd)
        else:
            from atlas_flows.report import ReportScope, RunFacts, build_report

            scope = ReportScope(reading=reading, dataset=dataset, top=top)
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
    from atlas_flows.known_truth import known_truth
    from atlas_flows.loop_report import build_loop_report
    from atlas_flows.paper_evaluation import EvaluationScope, evaluate_all

    truth = known_truth(folder, catalog, store) if with_truth else None
    with console(stderr=True).status("evaluating") as status:
        found = evaluate_all(
            catalog,
            store,
            truth,
            EvaluationScope(reading=reading, nsd=nsd),
            on_case=lambda done: status.update(f"evaluating: {done} cases"),
        )
    return build_loop_report(found)


def demo(
    context: typer.Context,
    ct: Annotated[
        Path | None,
        typer.Option(exists=True, help="Folder (or file) with CTs of your own; default: phantoms."),
    ] = None,
    cases: Annotated[int, typer.Option(min=1, max=1000, help="Phantoms to generate.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the phantoms.")] = 2026,
    output: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of report and ranking.")
    ] = Path("demo-output"),
) -> None:
    """Run everything once: CTs in, attention maps, priority list and a report page out.

    Starts a stack of its own beside any other (its data in `<home>/demo`), and stops it at the end,
    also after Ctrl-C. The demo's models are small and were trained on phantoms: labels on real CTs
    are poor.

    Example: atlasloop demo --ct /data/my-cts
    """
    from atlas_flows.demo import DemoRequest, run_demo

    run_demo(places(context), DemoRequest(ct=ct, cases=cases, seed=seed, output=output))
