"""`iterate` and `iterations`: the loop and its status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_flows.commands.options import (
    TOP_SHARE,
    ByOption,
    DatasetOption,
    EnsembleOption,
    JsonOption,
    ReadingName,
    ReadingOption,
)
from atlas_flows.commands.run_here import run_here
from atlas_flows.commands.terminal import console, places, print_table, write_text

if TYPE_CHECKING:
    from atlas_flows.settings import Places


def iterate(
    context: typer.Context,
    mode: Annotated[
        str, typer.Option(help="run, continue, proceed or restart; see the flow iterate.")
    ] = "run",
    dataset: DatasetOption = None,
    reading: ReadingOption = ReadingName.PAPER,
    by: ByOption = "disagreement",
    ensemble: EnsembleOption = None,
    share: Annotated[
        float, typer.Option(min=0.0001, max=1, help="Part of the list that is revised.")
    ] = TOP_SHARE,
    minutes: Annotated[
        float | None, typer.Option(min=15, help="Instead: annotators' time per iteration.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Fine-tune only this; may be given several times.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Per fine-tuning.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of a fine-tuning.")] = None,
    pseudo_weight: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="How much pseudo labels count; people's labels: 1."),
    ] = None,
    validation_dataset: Annotated[
        str | None, typer.Option(help="Judge new versions on this dataset.")
    ] = None,
    stop_share: Annotated[
        float, typer.Option(min=0.01, max=1, help="Confirmed part of the top that ends the loop.")
    ] = 1.0,
    limit: Annotated[int, typer.Option(min=1, help="At most so many iterations.")] = 3,
    deadline_hours: Annotated[
        float | None, typer.Option(help="Go on after so many hours, whatever is in the queue.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
) -> None:
    """Go on with the loop, as far as it can go without people (flow `iterate`).

    Needs the stack (atlasloop up). It ends when annotators are needed, and says where they work.
    Interrupted at any point, the next one goes on where it ended.

    Example: atlasloop iterate --dataset BTCV --share 0.05 --limit 2
    """
    given = {
        "mode": mode,
        "dataset": dataset,
        "reading": reading.value,
        "by": by,
        "ensemble": ensemble,
        "share": share,
        "minutes": minutes,
        "models": list(model or ()),
        "steps": steps,
        "learning_rate": learning_rate,
        "pseudo_weight": pseudo_weight,
        "validation_dataset": validation_dataset,
        "stop_share": stop_share,
        "iterations": limit,
        "deadline_hours": deadline_hours,
        "dry_run": dry_run,
    }
    console().print(run_iterate(places(context), given), markup=False, soft_wrap=True)


def run_iterate(here: Places, given: dict[str, Any]) -> str:
    """Run the flow in this process.

    Returns:
        Where it ended, in one line.

    Raises:
        AtlasError: what is missing.
    """
    with run_here(here, "iterate", "what is done stays done"):
        from atlas_flows.loop.flow import iterate as flow

        state = flow(**given, return_state=True)
    if not state.is_completed():
        state.result()  # raises what went wrong
    return f"{state.name}: {state.message or ''}"


def iterations(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the iterations of the loop and where the open one stands.

    Example: atlasloop iterations
    """
    from atlas_core.catalog import Catalog
    from atlas_core.loop import Iterations

    from atlas_flows.loop import iteration_status, next_step, summary_line

    with Catalog.open(places(context).catalog_url) as catalog:
        known = [(one, iteration_status(catalog, one)) for one in Iterations(catalog).all()]
    if as_json:
        rows = [one.model_dump(mode="json") | {"done": dict(s.done)} for one, s in known]
        write_text(None, json.dumps(rows, indent=2))
        return
    print_table(
        f"{len(known)} iterations",
        [
            {
                "t": str(one.t),
                "state": one.state.value,
                "started": f"{one.started_at:%Y-%m-%d %H:%M}",
                "next": next_step(status).key if one.state.value == "open" else "–",
                "what": summary_line(status),
            }
            for one, status in known
        ],
    )
