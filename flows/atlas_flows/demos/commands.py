"""`demo`, `loop-demo` and `simulate-annotator`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from atlas_flows.commands.options import DatasetOption, JsonOption
from atlas_flows.commands.terminal import console, places, write_text


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
    also after Ctrl-C. The demo's models are small and were trained on generated CTs: labels on real
    CTs are rough, and of small organs poor.

    Example: atlasloop demo --ct /data/my-cts
    """
    from atlas_flows.demos.scoring_demo import DemoRequest, run_demo

    run_demo(places(context), DemoRequest(ct=ct, cases=cases, seed=seed, output=output))


def simulate_annotator(
    context: typer.Context,
    truth: Annotated[
        Path, typer.Option(exists=True, help="Folder of `atlasloop phantoms`, with CTs and truth.")
    ],
    minutes: Annotated[float, typer.Option(min=1, help="Of a person's time, 15 a case.")] = 480.0,
    dice: Annotated[
        float, typer.Option(min=0, max=1, help="Labels with a lower Dice are replaced.")
    ] = 0.9,
    dataset: DatasetOption = None,
    url: Annotated[
        str | None, typer.Option(help="Of the review service; default: this machine's.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="ATLASLOOP_REVIEW_TOKEN",
            help="Of an account there; default: made in this machine's.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let a SIMULATED annotator work through the queue: for demonstrations and tests only.

    It knows the truth of phantoms, replaces wrong labels by it and confirms the rest, over the
    review service's HTTP API. Its labels bear the name simulated-annotator.

    Example: atlasloop simulate-annotator --truth phantoms --minutes 120
    """
    from atlas_embedded.components import review_token

    from atlas_flows.demos.simulated_annotator import (
        ACCOUNT,
        AnnotatorPolicy,
        PhantomLabels,
        ReviewApi,
        annotate,
    )

    here = places(context)
    known = PhantomLabels.of(truth)
    secret = token or review_token(here.embedded, ACCOUNT)
    with ReviewApi.open(url or here.review_url, secret) as api:
        done = annotate(
            api,
            known,
            AnnotatorPolicy(minutes, dice, dataset),
            lambda line: console(stderr=True).print(line, style="dim", markup=False),
        )
    if as_json:
        write_text(None, done.model_dump_json(indent=2))
        return
    console().print(
        f"simulated annotator: {done.revised} cases revised ({done.organs_replaced} organs), "
        f"{done.confirmed} confirmed, {done.skipped} skipped, {done.minutes:.0f} minutes; "
        f"shapes and strokes take {done.effort.seconds:.0f} s, "
        f"strokes alone {done.effort_by_drawing.seconds:.0f} s"
        + ("; the time was over before the queue was empty" if done.budget_spent else "")
    )


def loop_demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder of the report.")] = Path(
        "loop-demo-output"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the phantoms.")] = 8,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only show that it runs; nothing is learnt.")
    ] = False,
) -> None:
    """Does the loop repair what the models get wrong? On phantoms, against a control.

    Two arms begin with two demo models and a pool that hides patients whom they do not know: a
    simulated annotator revises the top of the priority list, or as many cases drawn by lot, and
    the models are fine-tuned, twice each. Needs torch, about 20 minutes on 2 cores; run again
    after an interruption, it goes on. The last line is one JSON object.

    Example: atlasloop loop-demo
    """
    from atlas_flows.demos.loop_demo import run_loop_demo

    write_text(None, json.dumps(run_loop_demo(places(context), output, seed, quick=quick)))
