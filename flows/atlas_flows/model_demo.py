"""The life of a model on phantoms, command by command as a person would type it, in minutes.

    python -m atlas_flows.model_demo        (make models-demo)

Runs an embedded stack of its own in ``<home>/models-demo``, and stops it whatever happens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_core.errors import AtlasError
from atlas_embedded import stack
from atlas_embedded.settings import ComponentName, EmbeddedSettings
from rich.console import Console

from atlas_flows.cli import app
from atlas_flows.commands.terminal import print_table, show_error
from atlas_flows.demos import (
    demo_settings,
    exclusive_demo,
    signals_ignored,
    sigterm_as_interrupt,
    use_stack,
)
from atlas_flows.demos.scoring_demo import delete_results
from atlas_flows.settings import Places


@dataclass(frozen=True)
class DemoStep:
    """One command of the demo.

    Attributes:
        why: what it shows, for people.
        arguments: of ``atlasloop``.
        refused: the command is expected to say no.
    """

    why: str
    arguments: tuple[str, ...]
    refused: bool = False


@dataclass(frozen=True)
class DemoOutcome:
    """How a command of the demo ended.

    Attributes:
        refusal: why it said no; empty: it did not.
    """

    step: DemoStep
    seconds: float
    refusal: str


class Unexpected(AtlasError):
    """A command of the demo did not end as expected."""


def demo_steps(folder: Path, *, scratch_steps: int = 40, tuning_steps: int = 20) -> list[DemoStep]:
    """What the demo does, in order; `folder` takes phantoms and the exported model."""
    cases, out = str(folder / "phantoms"), str(folder / "exported")
    held_out = ("--validation-share", "0.4")
    slow = ("--set", "learning_rate=2e-4")
    return [
        DemoStep(
            "phantoms with the labels of partially labelled datasets",
            ("phantoms", cases, "--cases", "10", "--columns", "64", "--hard", "0",
             "--labels", "partial", "--seed", "2026"),
        ),
        DemoStep(
            "into catalog and case store",
            ("import", cases, "--dataset", "phantoms", "--preset", "phantoms"),
        ),
        DemoStep("Triton with the demo models, and the attention service", ("up",)),
        DemoStep("what is in service", ("models", "list")),
        DemoStep(
            "step 1: train from scratch, for far too short",
            ("models", "train", "demo/unet", "--set", f"steps={scratch_steps}", *held_out),
        ),
        DemoStep(
            "it is tried beside the version in service, and is worse",
            ("models", "promote", "unet@1", "--why", "first try"),
            refused=True,
        ),
        DemoStep(
            "step 7: fine-tune the version in service on these labels",
            ("models", "finetune", "unet@0", "demo/unet", "--set", f"steps={tuning_steps}",
             *slow, *held_out),
        ),
        DemoStep(
            "as good: it goes into service while the service runs",
            ("models", "promote", "unet@2", "--margin", "0.05", "--why", "tuned on phantoms"),
        ),
        DemoStep("both on the same cases", ("models", "compare", "unet@0", "unet@2")),
        DemoStep("export it for another site", ("models", "export", "unet@2", "--output", out)),
        DemoStep("take it back", ("models", "rollback", "unet", "--why", "only a demo")),
        DemoStep("what is known of it", ("models", "show", "unet@2")),
        DemoStep("what is in service now", ("models", "list")),
    ]  # fmt: skip


def run_model_demo(places: Places, **sizes: int) -> None:
    """Run every step; `sizes`: see `demo_steps`.

    Raises:
        AtlasError, Conflict: see `run_steps`.
    """
    parts: tuple[ComponentName, ...] = ("triton", "attention")
    run_steps(places, "models-demo", parts, lambda folder: demo_steps(folder, **sizes))


def run_steps(
    places: Places,
    name: str,
    parts: Sequence[ComponentName],
    steps_in: Callable[[Path], list[DemoStep]],
) -> list[DemoOutcome]:
    """Run the steps of a demo on a stack of its own in ``<home>/<name>``.

    Args:
        parts: of the stack.
        steps_in: its steps, in a folder that no earlier demo has written to.

    Raises:
        AtlasError: a step ended otherwise than it should; the stack is stopped all the same.
        Conflict: another demo runs in the same home.
    """
    home = places.embedded.home / name
    places.embedded.make_home()
    home.mkdir(exist_ok=True)
    console = Console(highlight=False)
    with exclusive_demo(home), sigterm_as_interrupt():
        # A demo that was killed may still run; its ports must be free before ours are chosen.
        stack.down(EmbeddedSettings(home=home))
        delete_results(home)
        settings = demo_settings(home, parts)
        use_stack(settings)
        outcomes: list[DemoOutcome] = []
        try:
            for number, step in enumerate(steps_in(_fresh(home)), start=1):
                outcomes.append(_run(number, step, console))
        finally:
            with signals_ignored():
                console.print("stopping the stack")
                stack.down(settings)
    rows = [(" ".join(one.step.arguments[:3]), one.seconds) for one in outcomes]
    rows.append(("total", sum(seconds for _, seconds in rows)))
    table = [{"step": step, "seconds": f"{seconds:.1f}"} for step, seconds in rows]
    print_table("Wall time", table, numbers=("seconds",))
    return outcomes


def _fresh(home: Path) -> Path:
    """A folder that no earlier demo has written to."""
    taken = [int(path.name) for path in (home / "demos").glob("*") if path.name.isdecimal()]
    folder = home / "demos" / str(max(taken, default=0) + 1)
    folder.mkdir(parents=True)
    return folder


def _run(number: int, step: DemoStep, console: Console) -> DemoOutcome:
    console.print(f"\n[bold]{number}. {step.why}[/bold]")
    console.print(f"$ atlasloop {' '.join(step.arguments)}", markup=False, soft_wrap=True)
    started = time.monotonic()
    refusal: AtlasError | None = None
    status = 0
    try:
        status = app(list(step.arguments), standalone_mode=False) or 0
    except AtlasError as error:
        if not step.refused:
            raise
        refusal = error
        show_error(str(error))
    if status or step.refused != (refusal is not None):
        raise Unexpected(
            "a command did not end as it should",
            case=" ".join(step.arguments),
            expected="a refusal" if step.refused else "success",
        )
    seconds = time.monotonic() - started
    console.print(f"  ({seconds:.1f} s)")
    return DemoOutcome(step, seconds, "" if refusal is None else str(refusal))


def exit_status(demo: Callable[[Places], object]) -> int:
    """Of a demo that is a program of its own; what went wrong is said."""
    try:
        demo(Places.read())
    except AtlasError as error:
        show_error(str(error))
        return 2
    except KeyboardInterrupt:
        show_error("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(run_model_demo))
