"""Does the loop repair what the models get wrong? On phantoms, with a SIMULATED annotator, against
a control.

M0 are the demo models, which know adults; the pool hides patients among them that M0 does not know.
Two arms begin with the same M0, its predictions and the same cases: *disagreement* revises the top
of the priority list, *random* as many cases drawn by lot. Held-out cases of both groups say what
that was worth. Run again after an interruption, it goes on where it ended.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from atlas_core.atomic_writes import move_folder, replace_file, scratch_folder
from atlas_core.catalog import Catalog
from atlas_core.importing import import_folder
from atlas_core.phantoms import PhantomGrid, write_phantoms
from atlas_embedded import stack
from atlas_embedded.settings import ComponentName, EmbeddedSettings
from atlas_models.serving import read_spec
from rich.console import Console

from atlas_flows.commands.terminal import print_table, write_text
from atlas_flows.demos.demo_stack import demo_settings, exclusive_demo, sigterm_as_interrupt
from atlas_flows.demos.loop_arm import (
    CONTROL,
    FULL,
    HELD_OUT,
    KNOWN,
    LIST,
    QUICK,
    WORK,
    ArmResult,
    DemoHome,
    LoopTuning,
    Turn,
    judged,
    run_arm,
)
from atlas_flows.evaluation import TRUTH_FOLDER
from atlas_flows.reports import ArmCurve, build_arms_report, build_loop_report
from atlas_flows.settings import Places

PARTS: Final[tuple[ComponentName, ...]] = ("triton", "attention", "review", "prefect")
"""Runs happen in this process, so no process serves flows; else its automation would be first."""

HELD_OUT_HIDDEN_SHARE = 0.5

KNOWN_SEED: Final = 1_000_000
"""Of the phantoms that M0 rehearses, beside that of the demo: far from those of other demos."""

BEGUN: Final = "begun.json"
"""In the base's home: M0's line, once everything is scored."""

NOT_TAKEN_OVER: Final = ("prefect", "run", BEGUN)
"""What an arm leaves in the base's home: the history of runs, and what was running."""

NOTE: Final = "Phantoms and a simulated annotator: these figures say nothing about patients."


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
    tuning = QUICK if quick else FULL
    root = demo_root(places, tuning, seed)
    places.embedded.make_home()
    root.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, stderr=True)
    started = time.monotonic()
    seconds: dict[str, float] = {}
    with exclusive_demo(root), sigterm_as_interrupt():
        base = _home(root, "base", seed, tuning, console)
        with base.step("M0 and the pool"):
            first = _begin(base, places.embedded.models_dir)
        arms = {}
        for name in (LIST, CONTROL):
            arm = _home(root, name, seed, tuning, console)
            _take_over(base, arm)
            arms[name] = run_arm(arm, name, first)
            seconds |= arm.seconds
        figures = _report(arms, output)
    print_table(
        "Wall time",
        [{"step": name, "seconds": f"{s:.0f}"} for name, s in (base.seconds | seconds).items()],
        numbers=("seconds",),
    )
    return figures | {"simulated": True, "seconds": round(time.monotonic() - started, 1)}


def demo_root(places: Places, tuning: LoopTuning, seed: int) -> Path:
    """Where a demo keeps everything: another for other settings or other models, so that none goes
    on with what it did not begin."""
    models = places.embedded.models_dir
    specs = [read_spec(models / name).sha256 for name in tuning.models]
    text = json.dumps([asdict(tuning), seed, specs], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return (places.embedded.home / f"loop-demo-{key}").absolute()


def _home(root: Path, name: str, seed: int, tuning: LoopTuning, console: Console) -> DemoHome:
    home = root / name
    if home.is_dir():
        stack.down(EmbeddedSettings(home=home))  # what a demo that was killed has left
    return DemoHome(demo_settings(home, PARTS, models_dir=root / "M0"), root, seed, tuning, console)


def _begin(base: DemoHome, models: Path) -> Turn:
    """Phantoms, M0 out of `models`, and its predictions, in the home that every arm begins with."""
    home = base.settings.home
    begun = home / BEGUN
    if not begun.is_file():
        home.mkdir(mode=0o700, exist_ok=True)
        _bring_models(base, models)
        with Catalog.open(base.settings.catalog_url) as catalog:
            _import_cases(base, catalog)
        with base.running() as catalog:
            for dataset in (WORK, HELD_OUT):
                base.score(dataset)
            first = judged(base, catalog)
        replace_file(begun, first.model_dump_json(indent=1).encode())
    return Turn.model_validate_json(begun.read_bytes())


def _bring_models(base: DemoHome, models: Path) -> None:
    """M0: a copy, so that nothing changes it while the arms run."""
    for model in base.tuning.models:
        target = base.settings.models_dir / model
        if target.is_dir():
            continue
        with scratch_folder(base.root, prefix=".M0-") as scratch:
            shutil.copytree(models / model, scratch / model)
            target.parent.mkdir(exist_ok=True)
            move_folder(scratch / model, target)


def _import_cases(base: DemoHome, catalog: Catalog) -> None:
    tuning = base.tuning
    first = 2 * base.seed
    plans = (
        (WORK, WORK, first, tuning.pool, tuning.hidden_share),
        (HELD_OUT, HELD_OUT, first + 1, tuning.held_out, HELD_OUT_HIDDEN_SHARE),
        (KNOWN, WORK, first + KNOWN_SEED, tuning.known, 0.0),
    )
    for name, dataset, seed, cases, share in plans:
        folder = base.phantoms(name)
        write_phantoms(
            folder,
            cases,
            seed,
            hard_share=share,
            kinds=tuning.hidden,
            labels="none" if name == WORK else "truth",
            truth_folder=folder / TRUTH_FOLDER,
            grid=PhantomGrid(columns=tuning.columns),
        )
        preset = None if name == WORK else "phantoms"
        import_folder(folder, dataset, preset, catalog=catalog, store=base.store)
        base.console.print(f"  {name}: {cases} phantoms")


def _take_over(base: DemoHome, arm: DemoHome) -> None:
    """Catalog, store, models and predictions of the base, all or nothing."""
    if arm.settings.home.is_dir():
        return
    left = shutil.ignore_patterns(*NOT_TAKEN_OVER)
    with scratch_folder(arm.root, prefix=".arm-") as scratch:
        shutil.copytree(base.settings.home, scratch / "home", ignore=left, symlinks=True)
        move_folder(scratch / "home", arm.settings.home)


def _report(arms: Mapping[str, ArmResult], output: Path) -> dict[str, Any]:
    """The pages, and the figures of the last line; see docs/how-to/run-the-loop.md."""
    figures: dict[str, Any] = {}
    curves = []
    for name, arm in arms.items():
        page = build_loop_report(arm.evaluation, title=f"The loop, arm {name}", notes=[NOTE])
        write_text(output / f"{name}.html", page)
        write_text(output / f"{name}.json", arm.evaluation.model_dump_json(indent=1))
        assembled = [one.mean_dice_assembled for one in arm.evaluation.by_iteration]
        figures[name] = {
            "iterations": [turn.model_dump() for turn in arm.turns],
            "assembled": [None if dice is None else round(dice, 4) for dice in assembled],
        }
        curves.append(
            ArmCurve(
                name=name,
                hidden=[turn.hidden for turn in arm.turns],
                ordinary=[turn.ordinary for turn in arm.turns],
                assembled=assembled,
                revised=[turn.revised for turn in arm.turns],
                minutes=[turn.minutes for turn in arm.turns],
            )
        )
    page = build_arms_report(curves, title="The loop against a control", notes=[NOTE])
    write_text(output / "report.html", page)
    return {"arms": figures, "report": str(output / "report.html")}
