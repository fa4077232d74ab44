"""`ranking` and `evaluate ranking`: the priority list, and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_flows.commands.options import (
    ByOption,
    DatasetOption,
    JsonOption,
    ReadingName,
    ReadingOption,
)
from atlas_flows.commands.terminal import console, places, print_table, write_text

if TYPE_CHECKING:
    from atlas_flows.evaluation import Estimate, RankingEvaluation


def ranking(
    context: typer.Context,
    dataset: DatasetOption = None,
    reading: ReadingOption = ReadingName.PAPER,
    by: ByOption = "disagreement",
    ensemble: Annotated[
        str | None,
        typer.Option(help="The list of this ensemble; default: of the one in use."),
    ] = None,
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

    Organs with an original label do not count. The list is that of the ensemble in use, or of the
    last one that scored where it has scored nothing yet: scores of different ensembles do not
    compare. The column "because of" names the organs that drive a case's place, with what each adds
    to it. Scores of versions that did not count what the list is sorted by are refused.

    Example: atlasloop ranking --share 0.05 --csv revise-next.csv
    """
    from atlas_core.catalog import Catalog
    from atlas_core.records import RankBy, Reading

    from atlas_flows.scoring import priority_list

    request = priority_list.ListRequest(Reading(reading), RankBy(by), dataset, ensemble, top, share)
    with Catalog.open(places(context).catalog_url) as catalog:
        found = priority_list.read_list(catalog, request)
    shown, total = found.cases, found.total
    if found.note:
        console(stderr=True).print(found.note, markup=False, soft_wrap=True)
    if csv is not None:
        write_text(csv, priority_list.as_csv(shown, found.organs))
    if as_json:
        write_text(None, priority_list.as_json(shown, Reading(reading), RankBy(by)))
    elif csv is not None:
        console().print(f"{len(shown)} of {total} cases written to {csv}")
    elif not shown:
        console().print("No case is scored yet; run `atlasloop score`.")
    else:
        print_table(
            f"Priority list by {by}: {len(shown)} of {total} cases, reading {reading.value}",
            priority_list.as_rows(shown, RankBy(by)),
            numbers=priority_list.NUMBERS,
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
    by: ByOption = "disagreement",
    as_json: JsonOption = False,
) -> None:
    """Compare the priority list, in every order, with the true errors.

    The error of a case is 1 − mean Dice of its pseudo labels, over the organs that the patient has.
    Hard are the cases whose error is above the 95th percentile of ordinary ones. eAURC is the area
    under the risk-coverage curve: 0 for a perfect list, 1 for a random one. Brackets hold 95 % of a
    figure over resampled cases. --by says in which order the JSON lists the cases.

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
    """The comparison of list and truth: a table of the orders, and a few lines."""

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    def estimate(found: Estimate | None) -> str:
        return "–" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"

    hard = result.orders[0].hard
    rows = [
        {
            "order": order.by.value,
            "Spearman": estimate(order.spearman),
            f"hard in first {hard.cases}": str(order.hard.hard_found),
            "eAURC": estimate(order.e_aurc),
            **{f"error in top {top.share:.0%}": f"{top.error_share:.0%}" for top in order.top},
        }
        for order in result.orders
    ]
    print_table(
        f"The list against the truth, {result.cases} cases", rows, numbers=list(rows[0])[1:]
    )
    best = ", ".join(
        f"{top.error_share_at_best:.0%} in the top {top.share:.0%}" for top in result.orders[0].top
    )
    lines = [
        f"mean Dice of a case {shown(result.mean_dice)}, ordinary "
        f"{shown(result.mean_dice_ordinary)}, deliberately difficult "
        f"{shown(result.mean_dice_difficult)}",
        f"hard (error above {result.hard_above:.3f}): {hard.hard_total} cases; "
        f"in the first {hard.cases} at best {hard.hard_found_at_best}, by chance "
        f"{hard.hard_found_by_chance:.1f}",
        f"error at best: {best}",
        f"organs that are not there: {result.absent}, of which {result.absent_predicted} have a "
        f"pseudo label (not in the mean Dice)",
    ]
    if result.left_out:
        lines.append(
            f"not counted in some scores: {', '.join(order.value for order in result.left_out)}; "
            "`atlasloop score --force` counts it"
        )
    for line in lines:
        console().print(line)
