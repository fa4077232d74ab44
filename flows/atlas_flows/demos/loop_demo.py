"""The loop on phantoms, from partial labels to better models, with a SIMULATED annotator.

M0 is trained on what a few partially labelled datasets know; then two iterations of the flow
`iterate`, each with revisions over the review service's HTTP API; then the paper's evaluation. It
runs a stack of its own and stops it whatever happens; run again, it goes on where it ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from atlas_core.catalog import Catalog
from atlas_core.importing import import_folder
from atlas_core.loop import Iterations, steps_done
from atlas_core.phantoms import PhantomGrid, write_phantoms
from atlas_core.records import IterationState
from atlas_core.store import CaseStore
from atlas_embedded import stack
from atlas_embedded.components import review_token
from atlas_embedded.settings import ComponentName, EmbeddedSettings
from rich.console import Console

from atlas_flows.assembly import AssemblyRequest
from atlas_flows.commands.assembly import run_assemble
from atlas_flows.commands.loop import run_iterate
from atlas_flows.commands.scoring import run_score
from atlas_flows.commands.terminal import print_table, write_text
from atlas_flows.demos.demo_stack import (
    demo_settings,
    exclusive_demo,
    signals_ignored,
    sigterm_as_interrupt,
    use_stack,
)
from atlas_flows.demos.simulated_annotator import (
    ACCOUNT,
    AnnotatorPolicy,
    PhantomLabels,
    ReviewApi,
    annotate,
)
from atlas_flows.evaluation import TRUTH_FOLDER, EvaluationScope, PaperEvaluation
from atlas_flows.loop import IterationStatus, LoopParameters
from atlas_flows.models import TrainingOrder, model_store, train_version
from atlas_flows.scoring import ScoreRequest
from atlas_flows.settings import Places

PARTS: Final[tuple[ComponentName, ...]] = ("triton", "attention", "review", "prefect")
"""Runs happen in this process, so no process serves flows; else its automation would be first."""

WORK, HELD_OUT = "partial", "held-out"
"""Datasets: the one that is annotated, and the one that new versions are judged on."""

HARD_SHARE = 0.2
COLUMNS = 96
"""Voxels across: 3.7 mm, finer than what the models see."""

GRID: Final[Mapping[str, Any]] = {"spacing_mm": [9.0, 9.0, 11.0], "patch": [48, 48, 32]}
"""Of all models, as an ensemble has one: a window of 432 × 432 × 352 mm holds a phantom, so that a
case takes one pass, and every step of a training sees all of a patient."""

NETWORKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "unet": {},
    "nnunet": {"channels": [16, 32, 64, 64]},
}
"""Models, and what is other than in their demo configuration. Two that learn something in minutes:
the graph of a Swin UNETR takes longer to export than to train here, and a SegResNet of as many
minutes finds no organ yet."""

LEARNING_RATE = 2.0e-3
"""Of a fine-tuning; half of what M0 is trained with."""


@dataclass(frozen=True)
class Size:
    """How many phantoms are made, and how many steps are trained.

    Attributes:
        work_cases, held_out_cases: phantoms that are annotated, and that versions are judged on.
        first_steps: of the training of M0 by model; it shall have much to learn still.
        tuning_steps: of each fine-tuning.
    """

    work_cases: int
    held_out_cases: int
    first_steps: Mapping[str, int]
    tuning_steps: int


FULL = Size(30, 8, {"unet": 300, "nnunet": 260}, 120)
QUICK = Size(10, 2, dict.fromkeys(NETWORKS, 6), 4)
"""Shows that everything runs; nothing is learnt in so few steps."""

ITERATIONS = 2
SHARE = 0.2
"""Of 30 cases: six per iteration. The paper's 5 % of 8,448 cases would be one or two here."""

MINUTES = 240.0
"""Of the simulated annotator, per iteration: more than six cases take."""

WRONG_BELOW_DICE = 0.9
PATIENCE_S = 60.0
IN_FLIGHT = 2


@dataclass
class _Demo:
    """One run of the demo: its stack, and the times of its steps."""

    settings: EmbeddedSettings
    output: Path
    seed: int
    size: Size
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def places(self) -> Places:
        return Places.read(self.settings.home)

    @property
    def phantoms(self) -> Path:
        return self.settings.home / f"phantoms-{self.seed}-{self.size.work_cases}"

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times a step and prints it."""
        self.console.print(f"[bold]{name}[/bold]")
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
        self.console.print(f"  {name}: {self.seconds[name]:.0f} s")


def run_loop_demo(
    places: Places, output: Path, seed: int, *, quick: bool = False
) -> dict[str, Any]:
    """Run everything once; the figures for the last line on the terminal.

    Args:
        quick: only show that it runs: few cases, few steps.

    Raises:
        AtlasError: what went wrong; the stack is stopped all the same.
        Conflict: another demo runs in the same home.
    """
    home = (places.embedded.home / ("loop-demo-quick" if quick else "loop-demo")).absolute()
    places.embedded.make_home()
    home.mkdir(exist_ok=True)
    with exclusive_demo(home), sigterm_as_interrupt():
        stack.down(EmbeddedSettings(home=home))  # what a demo that was killed has left
        settings = demo_settings(home, PARTS, models_dir=home / "M0")
        use_stack(settings)
        size = QUICK if quick else FULL
        demo = _Demo(settings, output, seed, size, Console(highlight=False, stderr=True))
        with Catalog.open(settings.catalog_url) as catalog:
            return _run(demo, catalog)


def _run(demo: _Demo, catalog: Catalog) -> dict[str, Any]:
    started = time.monotonic()
    with demo.step("phantoms"):
        _import_cases(demo, catalog)
    _train_first(demo, catalog)
    try:
        with demo.step("stack"):
            stack.up(demo.settings, on_event=lambda line: demo.console.print(f"  {line}"))
        _iterate(demo, catalog)
        with demo.step("score and assemble with the last models"):
            run_score(
                demo.places,
                ScoreRequest(dataset=WORK),
                in_flight=IN_FLIGHT,
                patience_s=PATIENCE_S,
            )
            run_assemble(demo.places, AssemblyRequest(dataset=WORK), in_flight=IN_FLIGHT)
    finally:
        with signals_ignored():
            stack.down(demo.settings)
    with demo.step("report"):
        evaluation = _report(demo, catalog)
    figures = _figures(catalog, evaluation)
    print_table(
        "Wall time",
        [{"step": name, "seconds": f"{spent:.0f}"} for name, spent in demo.seconds.items()],
        numbers=("seconds",),
    )
    return figures | {
        "report": str(demo.output / "report.html"),
        "seconds": round(time.monotonic() - started, 1),
    }


def _import_cases(demo: _Demo, catalog: Catalog) -> None:
    store = CaseStore(demo.settings.store)
    plans = (
        (WORK, demo.size.work_cases, HARD_SHARE, "partial"),
        (HELD_OUT, demo.size.held_out_cases, 0.0, "truth"),
    )
    for number, (dataset, cases, hard, labels) in enumerate(plans):
        folder = demo.phantoms / dataset
        write_phantoms(
            folder,
            cases,
            2 * demo.seed + number,
            hard_share=hard,
            labels=labels,  # type: ignore[arg-type]  # one of its literals
            truth_folder=folder / TRUTH_FOLDER,
            grid=PhantomGrid(columns=COLUMNS),
        )
        import_folder(folder, dataset, "phantoms", catalog=catalog, store=store)
        demo.console.print(f"  {dataset}: {cases} phantoms, labels: {labels}")


def _train_first(demo: _Demo, catalog: Catalog) -> None:
    """M0 of every model, from scratch on the partial labels; what is there already stays."""
    models = model_store(demo.places)
    for name, changes in NETWORKS.items():
        with demo.step(f"M0 of {name}"):
            order = TrainingOrder(
                config=f"demo/{name}",
                datasets=(WORK,),
                overrides={**GRID, **changes, "steps": demo.size.first_steps[name]},
                validation_share=0.0,
                version=0,
            )
            train_version(order, demo.places, catalog, models, _report_steps(demo))
            target = demo.settings.models_dir / name
            if not target.exists():
                models.copy_to(name, 0, target)


def _report_steps(demo: _Demo) -> Any:
    """Prints the steps of a training, now and then."""
    printed_at = time.monotonic()

    def say(step: int, steps: int) -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at > 10.0:
            printed_at = time.monotonic()
            demo.console.print(f"  step {step} of {steps}")

    return say


def _iterate(demo: _Demo, catalog: Catalog) -> None:
    """Run flow and simulated annotator in turns until the loop ends."""
    truth = PhantomLabels.of(demo.phantoms / WORK)
    given = {
        "mode": "run",
        "dataset": WORK,
        "share": SHARE,
        "steps": demo.size.tuning_steps,
        "learning_rate": LEARNING_RATE,
        "validation_dataset": HELD_OUT,
        "validation_share": 0.0,
        "iterations": ITERATIONS,
        "in_flight": IN_FLIGHT,
        "patience_s": PATIENCE_S,
    }
    while not _ended(catalog):
        with demo.step(f"iterate, run {sum('iterate' in name for name in demo.seconds) + 1}"):
            demo.console.print(f"  {run_iterate(demo.places, given)}", markup=False)
        if _ended(catalog):
            return
        number = len(Iterations(catalog).all()) - 1
        with demo.step(f"simulated annotator, iteration {number}"):
            token = review_token(demo.settings, ACCOUNT)
            with ReviewApi.open(demo.settings.review_url, token) as api:
                policy = AnnotatorPolicy(MINUTES, WRONG_BELOW_DICE, WORK)
                done = annotate(api, truth, policy, lambda line: demo.console.print(f"  {line}"))
            demo.console.print(
                f"  {done.revised} revised, {done.confirmed} confirmed, {done.minutes:.0f} minutes"
            )


def _ended(catalog: Catalog) -> bool:
    """Whether the loop is over: its limit is reached, or annotators confirmed the top."""
    known = Iterations(catalog).all()
    if not known or known[-1].state is IterationState.OPEN:
        return False
    closed = steps_done(catalog, known[-1].t).get("close", {})
    return closed.get("ending") != "next"


def _report(demo: _Demo, catalog: Catalog) -> PaperEvaluation:
    from atlas_flows.evaluation import evaluate_all, open_ground_truth
    from atlas_flows.reports import build_loop_report

    store = CaseStore(demo.settings.store)
    truth = open_ground_truth(demo.phantoms / WORK, catalog, store)
    evaluation = evaluate_all(catalog, store, truth, EvaluationScope(nsd=False))
    note = "Phantoms and a simulated annotator: these figures say nothing about patients."
    page = build_loop_report(evaluation, title="The loop on phantoms", notes=[note])
    write_text(demo.output / "report.html", page)
    write_text(demo.output / "evaluation.json", evaluation.model_dump_json(indent=1))
    return evaluation


def _figures(catalog: Catalog, evaluation: PaperEvaluation) -> dict[str, Any]:
    """The figures of the last line; see docs/how-to/run-the-loop.md."""
    last = evaluation.by_iteration[-1]
    by_hand = evaluation.efficiency.by_hand_missing.minutes
    first = evaluation.by_iteration[0]
    spent = evaluation.efficiency.in_loop_recorded
    minutes = 0.0 if spent is None else spent.minutes
    return {
        "mean_dice": mean_dice(catalog),
        "mean_dice_of_pseudo_labels": [
            None if one.mean_dice is None else round(one.mean_dice, 4)
            for one in evaluation.by_iteration
        ],
        "sensitivity": last.sensitivity,
        "precision": last.precision,
        "error_in_top_5_percent": round(first.error_in_top, 4),
        "error_in_top_5_percent_by_chance": round(first.error_in_top_by_chance, 4),
        "annotator_minutes": round(minutes, 1),
        "minutes_to_annotate_everything": round(by_hand, 1),
        "simulated": True,
    }


def mean_dice(catalog: Catalog) -> dict[str, float]:
    """Mean Dice of the models in service before the loop and after each iteration, on held-out
    cases, by what their promotions recorded; the mean over the models."""
    means: dict[str, float] = {}
    for iteration in Iterations(catalog).all():
        parameters = LoopParameters.model_validate(iteration.parameters)
        status = IterationStatus(iteration.t, parameters, steps_done(catalog, iteration.t))
        tried = [status.promoted(model) for model in status.versions]
        evidence = [one for one in tried if one is not None and one.evidence]
        if not evidence:
            continue
        before = [one.evidence["mean_dice_before"] for one in evidence]
        after = [
            one.evidence["mean_dice_before" if one.refused else "mean_dice"] for one in evidence
        ]
        means.setdefault("M0", round(sum(before) / len(before), 4))
        means[f"M{len(means)}"] = round(sum(after) / len(after), 4)
    return means
