"""Training on the cases of a catalog, from a shell; see `training.catalog_training`.

python -m atlas_models.train_command --catalog URL --store DIR --config demo/unet --run DIR

torchrun --nproc-per-node 8 -m atlas_models.train_command … --devices 8
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError
from atlas_core.records import LabelSource
from atlas_core.store import CaseStore
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from atlas_models.config import read_override
from atlas_models.training import (
    LabelChoice,
    TrainingProgress,
    TrainRequest,
    train_from_catalog,
)


def progress_bar(title: str) -> tuple[Progress, Callable[[TrainingProgress], None]]:
    """A progress bar on standard error, as a context manager, and the function that advances it."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task(title, total=None, state="")

    def say(step: TrainingProgress) -> None:
        state = f"loss {step.loss:.3f}"
        if step.dice is not None:
            state += f", Dice {step.dice:.3f}"
        bar.update(task, total=step.steps, completed=step.step, state=state)

    return bar, say


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        catalog, store, request = _parsed(arguments)
        bar, say = progress_bar(str(request.config))
        with Catalog.open(catalog) as opened, bar:
            outcome = train_from_catalog(
                request, store=CaseStore(store), catalog=opened, on_progress=say
            )
    except AtlasError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if outcome is not None:
        found = {"folder": str(outcome.folder), "metrics": outcome.metrics}
        sys.stdout.write(json.dumps(found | {"refused": outcome.refused}, indent=1) + "\n")
    return 0


def _parsed(arguments: Sequence[str] | None) -> tuple[str, Path, TrainRequest]:
    parser = argparse.ArgumentParser(prog="python -m atlas_models.train_command")
    parser.add_argument("--catalog", required=True, help="address: sqlite:///… or postgresql://…")
    parser.add_argument("--store", required=True, type=Path, help="folder of the case store")
    parser.add_argument("--config", required=True, help="YAML file or shipped name (demo/unet)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--dataset", action="append", default=[])
    parser.add_argument("--source", action="append", choices=[s.value for s in LabelSource])
    parser.add_argument("--labels", default="in_force", choices=[c.value for c in LabelChoice])
    parser.add_argument("--validation-share", type=float, default=0.1)
    parser.add_argument("--weights", type=Path, help="fine-tune from these")
    parser.add_argument("--run", required=True, type=Path, help="checkpoints and curves")
    parser.add_argument("--output", type=Path, help="folder of the exported model")
    parser.add_argument("--model-version", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=50)
    parser.add_argument("--accelerator", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--loaders", type=int, default=0)
    chosen = parser.parse_args(arguments)
    sources = {"sources": tuple(map(LabelSource, chosen.source))} if chosen.source else {}
    request = TrainRequest(
        config=chosen.config,
        overrides=dict(map(read_override, chosen.set)),
        datasets=tuple(chosen.dataset),
        labels=chosen.labels,
        validation_share=chosen.validation_share,
        weights=chosen.weights,
        run_folder=chosen.run,
        output=chosen.output,
        version=chosen.model_version,
        checkpoint_every=chosen.checkpoint_every,
        accelerator=chosen.accelerator,
        devices=chosen.devices,
        nodes=chosen.nodes,
        loaders=chosen.loaders,
        **sources,
    )
    return chosen.catalog, chosen.store, request


if __name__ == "__main__":
    sys.exit(main())
