"""`ranking` and `evaluate ranking`: the priority list, and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_flows.commands.options import (
    DatasetOption,
    JsonOption,
    RankByName,
    ReadingName,
    ReadingOption,
)
from atlas_flows.commands.terminal import console, places, print_table, write_text

if TYPE_CHECKING:
    from atlas_flows.evaluation import RankingEvaluation

ByOption = Annotated[
    RankByName,
    typer.Option(
        "--by",
        help="size: attention size, the paper's. relative: attention of each organ against its own "
        "volume, averaged; large patients do not come first. disagreement: how much the models' "
        "masks differ (1 − pairwise Dice), averaged over organs.",
    ),
]


def ranking(
    context: typer.Context,
    dataset: DatasetOption = None,
    reading: ReadingOption = ReadingName.PAPER,
    by: ByOption = "size",
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
    from atlas_core.records import RankBy, Reading

    from atlas_flows.scoring import priority_list

    if top is not None and share is not None:
        raise InvalidInput("--top and --share exclude each other", remedy="give one of them")
    with Catalog.open(places(context).catalog_url) as catalog:
        if dataset is not None:
            catalog.dataset(dataset)  # a typing error must not look like an empty dataset
        cases = catalog.ranking(Reading(reading), dataset=dataset, by=RankBy(by))
        organs = catalog.organ_scheme().names
    shown = cases[:top] if share is None else cases[: priority_list.cases_in(share, len(cases))]
    if csv is not None:
        write_text(csv, priority_list.as_csv(shown, organs))
    if as_json:
        write_text(None, priority_list.as_json(shown, Reading(reading), RankBy(by)))
    elif csv is not None:
        console().print(f"{len(shown)} of {len(cases)} cases written to {csv}")
    elif not shown:
        console().print("No case is scored yet; run `atlasloop score`.")
    else:
        print_table(
            f"Priority list: {len(shown)} of {len(cases)} cases, reading {reading.value}",
            priority_list.as_rows(shown),
            numbers=("rank", "attention (ml)", "relative", "disagreement"),
        )


def evaluate(
    context: typer.Context,
    truth: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of `atlasloop phantoms`, with the true masks.",
        ),
    ],
    reading: ReadingOption = ReadingName.PAPER,
    by: ByOption = "size",
    as_json: JsonOption = False,
) -> None:
    """Compare the priority list with the true errors of phantoms.

    Prints the Spearman correlation between attention and 1 − mean Dice of the pseudo labels,
    and how many of the deliberately hard cases stand in the top 10 % of the list.

    Example: atlasloop evaluate ranking --truth phantoms --json
    """
    from atlas_core.catalog import Catalog
    from atlas_core.records import RankBy, Reading
    from atlas_core.store import CaseStore

    from atlas_flows.evaluation import case_errors, evaluate_ranking

    here = places(context)
    with Catalog.open(here.catalog_url) as catalog:
        errors = case_errors(truth, catalog, CaseStore(here.store), Reading(reading))
        result = evaluate_ranking(errors, RankBy(by))
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
        f"{result.cases} cases; mean Dice of a case {shown(result.mean_dice)}, ordinary "
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
