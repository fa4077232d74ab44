"""The demo models: three small networks trained on phantoms, for demonstrations and tests.

    python -m atlas_models.demo train       # make demo-models; minutes on two cores
    python -m atlas_models.demo evaluate    # metrics of the committed models as JSON, without torch

They know the anatomy of phantoms, and that of the people whose label maps they are given
(``--anatomies``). They are no medical device.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from atlas_core.atomic_writes import replace_file
from atlas_core.errors import AtlasError, NotFound
from atlas_core.organs import read_scheme
from atlas_core.phantoms import (
    ANATOMY_ORGANS,
    HARD_KINDS,
    Anatomy,
    Kind,
    Phantom,
    PhantomGrid,
    case_plan,
    draw_phantom,
    make_phantom,
    read_anatomy,
)
from numpy.typing import NDArray

from atlas_models.config import CONFIGS as SHIPPED
from atlas_models.config import TrainingConfig, read_config
from atlas_models.evaluation.phantom_evaluation import (
    ENSEMBLE,
    LocalPredictor,
    PhantomResult,
    evaluate_phantom,
    summarise,
)
from atlas_models.training import PatchSampler, TrainingCase, phantom_case

CONFIGS = SHIPPED / "demo"
MODELS = Path(__file__).resolve().parents[1] / "demo"
"""Where the demo models are committed."""

ORDER = ("unet", "nnunet", "swin_unetr")
"""Quickest first, so that a broken set-up shows early."""

TRAINING_SEED = 20230517
HELD_OUT_SEED = 8448
"""Seeds of phantom runs: `case_plan` hashes them, so that the two never overlap."""

DRAWN_SEED = 117
"""Of CTs drawn from people's label maps; another run than those of the phantoms."""

TRAINING_CASES = 320
DRAWN_CASES = 480
DRAWN_GRID = PhantomGrid(columns=128)
HELD_OUT_ORDINARY = 12
HELD_OUT_HARD = 2 * len(HARD_KINDS)

PROVENANCE_FILE = "provenance.json"


# --- phantoms -------------------------------------------------------------------------------------


def training_cases(
    config: TrainingConfig,
    count: int = TRAINING_CASES,
    anatomies: Sequence[Anatomy] = (),
    drawn: int = DRAWN_CASES,
) -> list[TrainingCase]:
    """Ordinary phantoms on the models' grid, and CTs drawn from `anatomies`, dealt out in turn.
    Hard ones are left out, as they are rare in life: what attention is for is that a model has not
    seen them."""
    # Processes of their own: drawing holds the interpreter, and torch's threads survive no fork.
    with ProcessPoolExecutor(_cores(), mp_context=get_context("spawn")) as pool:
        made = list(pool.map(partial(_training_case, config), range(1, count + 1)))
        for place, anatomy in enumerate(anatomies):
            numbers = range(1 + place, drawn + 1, len(anatomies))
            made += pool.map(partial(_drawn_case, config, anatomy), numbers, chunksize=16)
    return made


def _training_case(config: TrainingConfig, number: int) -> TrainingCase:
    plan = case_plan(number, TRAINING_SEED, hard_share=0.0)
    return phantom_case(make_phantom(plan.seed, plan.kind), config)


def _drawn_case(config: TrainingConfig, anatomy: Anatomy, number: int) -> TrainingCase:
    plan = case_plan(number, DRAWN_SEED, hard_share=0.0)
    return phantom_case(draw_phantom(anatomy, plan.seed, plan.kind, DRAWN_GRID), config)


def held_out(ordinary: int = HELD_OUT_ORDINARY, hard: int = HELD_OUT_HARD) -> Iterator[Phantom]:
    """Phantoms that no model was trained on: first ordinary ones, then hard ones of each kind."""
    for number in range(1, ordinary + 1):
        plan = case_plan(number, HELD_OUT_SEED, hard_share=0.0)
        yield make_phantom(plan.seed, plan.kind)
    for number in range(ordinary + 1, ordinary + hard + 1):
        plan = case_plan(number, HELD_OUT_SEED, hard_share=1.0)
        yield make_phantom(plan.seed, plan.kind)


# --- evaluation -----------------------------------------------------------------------------------


def evaluate(
    models: Path = MODELS, ordinary: int = HELD_OUT_ORDINARY, hard: int = HELD_OUT_HARD
) -> dict[str, object]:
    """Dice of the models in `models` and of their ensemble on held-out phantoms, and attention."""
    folders = [models / name for name in ORDER if (models / name).is_dir()]
    if not folders:
        raise NotFound(
            "no demo models in the folder",
            expected=", ".join(ORDER),
            remedy="train them: make demo-models",
        )
    results = []
    with LocalPredictor(folders) as predictor:
        for phantom in held_out(ordinary, hard):
            results.append(evaluate_phantom(phantom, predictor))
            _say(f"evaluated {len(results)} of {ordinary + hard} held-out phantoms")
    return _metrics(results)


def _metrics(results: Sequence[PhantomResult]) -> dict[str, object]:
    hard = [result for result in results if result.kind is not Kind.ORDINARY]
    ordinary = [result for result in results if result.kind is Kind.ORDINARY]
    metrics: dict[str, object] = {}
    if ordinary:
        metrics["ordinary"] = summarise(ordinary)
    if hard:
        metrics["hard"] = summarise(hard)
        metrics["hard_by_kind"] = {
            kind.value: {
                "ensemble_mean_dice": _ensemble_dice(of_kind),
                "attention_ml": summarise(of_kind)["attention_ml"],
            }
            for kind in HARD_KINDS
            if (of_kind := [result for result in hard if result.kind is kind])
        }
    return metrics


def _ensemble_dice(results: Sequence[PhantomResult]) -> object:
    summary = summarise(results)[ENSEMBLE]
    return summary["mean_dice"] if isinstance(summary, dict) else None


# --- training -------------------------------------------------------------------------------------


def train_demo_models(
    names: Sequence[str],
    models: Path,
    steps: int | None = None,
    anatomies: Sequence[Anatomy] = (),
    sources: Sequence[str] = (),
    runs: Path | None = None,
    start: Path | None = None,
    precision: str | None = None,
) -> None:
    """Train and export the named demo models into `models`, then measure the whole ensemble.

    Args:
        steps, precision: of this run instead of each configuration's. The models keep the
            configuration's own: what trains them further, elsewhere, takes minutes.
        anatomies: people to draw CTs from beside the phantoms.
        sources: where their label maps are from, and their licences, for the models' provenance.
        runs: folder of checkpoints: what is trained again with the same cases continues there.
            None: none are kept.
        start: folder of exported models whose weights are trained further; None: from scratch.
    """
    configs = [read_config(CONFIGS / f"{name}.yaml") for name in names]
    changes = {"steps": steps, "precision": precision}
    changes = {name: value for name, value in changes.items() if value is not None}
    _keep_freed_memory()
    started = time.monotonic()
    cases = training_cases(configs[0], anatomies=anatomies)
    _say(f"{len(cases)} training cases in {time.monotonic() - started:.0f} s")
    data = _data(anatomies, sources)
    for config in configs:
        run = None if runs is None else runs / config.name
        weights = None if start is None else start / config.name
        provenance = _train_one(config, cases, data, models / config.name, run, weights, changes)
        _write_json(models / config.name / PROVENANCE_FILE, provenance)
    metrics = evaluate(models)
    for name in ORDER:
        path = models / name / PROVENANCE_FILE
        if path.exists():
            _write_json(path, {**json.loads(path.read_text()), "metrics": metrics})
    _say(f"all done in {time.monotonic() - started:.0f} s")


def _data(anatomies: Sequence[Anatomy], sources: Sequence[str]) -> dict[str, object]:
    """What was learnt from, for the provenance."""
    data: dict[str, object] = {
        "source": "phantoms of atlas_core.phantoms, fully labelled, ordinary only",
        "training_run_seed": TRAINING_SEED,
        "held_out_run_seed": HELD_OUT_SEED,
    }
    if anatomies:
        data["drawn"] = {
            "anatomies": [{"name": a.name, "sha256": a.sha256} for a in anatomies],
            "sources": list(sources),
            "cases": DRAWN_CASES,
            "run_seed": DRAWN_SEED,
        }
    return data


def _train_one(
    config: TrainingConfig,
    cases: Sequence[TrainingCase],
    data: dict[str, object],
    folder: Path,
    run: Path | None = None,
    start: Path | None = None,
    changes: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Train, export and check one model; its provenance, without metrics.

    Args:
        changes: fields of the configuration that are other in this run alone.
    """
    # torch and monai take seconds to import and `evaluate` does without them.
    import torch

    from atlas_models.exporting import export_model, measure_parity, read_weights, write_weights
    from atlas_models.training import RunOptions, finetune, train

    if start is not None:
        data = data | {"started_from": _record_of(start)}
    options = RunOptions(folder=run, data_key=json.dumps(data, sort_keys=True))
    progress = _progress(config.name)
    now = config.model_copy(update=changes or {})
    if start is None:
        trained = train(now, cases, run=options, on_progress=progress)
    else:
        weights, _ = read_weights(start)
        trained = finetune(weights, now, cases, run=options, on_progress=progress)
    spec = export_model(trained.network, config, folder)
    written = write_weights(trained.network, config, folder)
    parity = measure_parity(trained.network, config, folder, _parity_windows(config, cases))
    return {
        "command": "python -m atlas_models.demo train",
        "sha256": spec.sha256,
        "weights_sha256": _sha256(written),
        "config": config.model_dump(mode="json"),
        "data": data | {"training_cases": len(cases)},
        "training": {
            "seconds": round(trained.seconds, 1),
            "steps": now.steps,
            "precision": now.precision,
            "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in trained.network.parameters()),
            "loss_first": round(trained.losses[0], 4),
            "loss_last": round(sum(trained.losses[-20:]) / len(trained.losses[-20:]), 4),
        },
        "parity_with_torch": {"probability": parity.probability, "byte": parity.byte},
        "machine": {"cpu": _cpu_name(), "cores": _cores()},
        "libraries": {
            name: metadata.version(name)
            for name in ("torch", "monai", "onnx", "onnxscript", "onnxruntime", "numpy", "scipy")
        },
    }


def _record_of(folder: Path) -> dict[str, object]:
    """What is known of the model in `folder`, without its metrics, for those that start from it."""
    from atlas_models.exporting import WEIGHTS_FILE

    try:
        record: dict[str, object] = json.loads((folder / PROVENANCE_FILE).read_text())
    except FileNotFoundError:
        record = {}
    record.pop("metrics", None)
    return record | {"weights_sha256": _sha256(folder / WEIGHTS_FILE)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _progress(name: str) -> Callable[[object], None]:
    """Reports how far a run is, every few seconds at most."""
    from atlas_models.training import TrainingProgress

    reported_at = 0.0

    def say(progress: object) -> None:
        nonlocal reported_at
        assert isinstance(progress, TrainingProgress)
        if progress.seconds - reported_at > 5.0 or progress.step == progress.steps:
            reported_at = progress.seconds
            rest = progress.seconds / progress.step * (progress.steps - progress.step)
            _say(
                f"{name}: step {progress.step} of {progress.steps}, loss {progress.loss:.3f}, "
                f"{rest:.0f} s to go"
            )

    return say


def _parity_windows(
    config: TrainingConfig, cases: Sequence[TrainingCase]
) -> list[NDArray[np.float32]]:
    """A window of random HU and one of a phantom."""
    hu = PatchSampler(cases[:1], config.patch, config.seed).draw(0, 1).hu[0, 0]
    noise = np.random.Generator(np.random.PCG64(config.seed)).normal(0.0, 300.0, hu.shape)
    return [noise.astype(np.float32), hu]


def _keep_freed_memory() -> None:
    """Let glibc reuse freed blocks instead of returning them to the system.

    Every step frees and takes the same hundreds of megabytes; fresh pages must be zeroed, which was
    measured to cost as much again as the training itself. Elsewhere (musl, macOS) nothing changes.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**31 - 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _cpu_name() -> str:
    """The processor's class, as the system names it; no host name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


# --- command line ---------------------------------------------------------------------------------


def _say(text: str) -> None:
    """Progress goes to standard error; standard output is for results."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _write_json(path: Path, value: object) -> None:
    replace_file(path, (json.dumps(value, indent=1) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m atlas_models.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train, export and measure the demo models")
    train.add_argument("--model", action="append", choices=ORDER, help="only this one (repeatable)")
    train.add_argument("--steps", type=int, help="instead of each configuration's own")
    train.add_argument(
        "--anatomies", action="append", type=Path, default=[],
        help="also learn from CTs drawn from this label map of TotalSegmentator's structures, or "
        "folder of masks (repeatable)",
    )  # fmt: skip
    train.add_argument(
        "--source", action="append", default=[],
        help="of the label maps: title and licence, for the provenance (repeatable)",
    )  # fmt: skip
    train.add_argument(
        "--runs", type=Path,
        help="keep checkpoints in this folder: a training that was interrupted goes on from there",
    )  # fmt: skip
    train.add_argument(
        "--start", type=Path, help="train the models in this folder further, not from scratch",
    )  # fmt: skip
    train.add_argument(
        "--precision", choices=("float32", "bfloat16"),
        help="instead of each configuration's own; bfloat16 halves the time on a CPU that computes "
        "in it (AVX512-BF16, AMX), and takes many times as long elsewhere",
    )  # fmt: skip
    check = commands.add_parser("evaluate", help="measure the models, print JSON")
    check.add_argument("--ordinary", type=int, default=HELD_OUT_ORDINARY)
    check.add_argument("--hard", type=int, default=HELD_OUT_HARD)
    for command in (train, check):
        command.add_argument("--models", type=Path, default=MODELS, help="folder of the models")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "train":
            if chosen.anatomies and not chosen.source:
                parser.error("--anatomies: name where they are from and their licence by --source")
            scheme = read_scheme(ANATOMY_ORGANS)
            people = [read_anatomy(path, scheme) for path in chosen.anatomies]
            train_demo_models(
                chosen.model or ORDER,
                chosen.models,
                chosen.steps,
                people,
                chosen.source,
                chosen.runs,
                chosen.start,
                chosen.precision,
            )
        else:
            metrics = evaluate(chosen.models, chosen.ordinary, chosen.hard)
            sys.stdout.write(json.dumps(metrics, indent=1) + "\n")
    except AtlasError as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
