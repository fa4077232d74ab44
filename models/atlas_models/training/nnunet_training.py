"""Training by nnU-Net itself, in folders and a process of its own.

    <run>/raw/Dataset001_Atlas       cases
    <run>/preprocessed               the same, as nnU-Net prepares them
    <run>/<network>.json             what was asked of a network
    <run>/results/<network>          its checkpoints and curves

Every step may be killed: raw data appear by one rename, preprocessing is repeated unless it was
completed, training goes on from nnU-Net's checkpoint of the last epoch.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from atlas_core.atomic_writes import new_folder, replace_file
from atlas_core.errors import InvalidInput

from atlas_models.training import nnunet_trainer

DATASET = "Dataset001_Atlas"
PLANS = "nnUNetPlans"
FOLD = "all"
"""On all cases: what is held out is held out before, and `promote` judges by it."""

EPOCH = 250
"""Iterations of an epoch, as nnU-Net counts."""

LAST_LINES = 8
"""Of what nnU-Net says, in an error."""


@dataclass(frozen=True)
class NnunetRun:
    """One training by nnU-Net.

    Attributes:
        folder: of the run; kept until it is done.
        plans: content of ``plans.json``; see `nnunet_plans.training_plans` for foreign ones.
        configuration: of the plans.
        dataset: content of ``dataset.json``.
        weights: file with ``network_weights`` to start from; None: from scratch.
        steps, learning_rate: optimiser steps, rounded up to whole epochs; rate at first.
        trainer: class of nnU-Net's trainer; several are joined by ``+``.
        seed: of weights and of patches, without loaders; None: another one every time.
        python: interpreter with nnunetv2; None: this one.
        device: cpu, cuda or auto.
        loaders: processes that prepare patches ahead; 0: none.
        network: several networks may learn from the same cases, each under a name of its own.
    """

    folder: Path
    plans: Mapping[str, Any]
    configuration: str
    dataset: Mapping[str, Any]
    weights: Path | None
    steps: int
    learning_rate: float
    trainer: str = "nnUNetTrainer"
    seed: int | None = None
    python: Path | None = None
    device: str = "auto"
    loaders: int = 0
    epoch: int = EPOCH
    network: str = "network"

    @property
    def epochs(self) -> int:
        return -(-self.steps // self.iterations)

    @property
    def iterations(self) -> int:
        """Of one epoch."""
        return min(self.epoch, self.steps)

    @property
    def raw(self) -> Path:
        """Where the cases are."""
        return self.folder / "raw" / DATASET

    @property
    def results(self) -> Path:
        """nnU-Net's results of this network."""
        return self.folder / "results" / self.network


def train_by_nnunet(
    run: NnunetRun,
    write_cases: Callable[[Path], None],
    on_epoch: Callable[[int, int], None] = lambda done, of: None,
) -> Path:
    """Train, or go on with a training that was killed.

    Args:
        write_cases: writes the raw data into a new folder; see `write_raw`.
        on_epoch: called with epochs begun, and all.

    Returns:
        The last checkpoint.

    Raises:
        InvalidInput: nnU-Net failed; the message has its last lines.
    """
    if not run.raw.exists():
        run.raw.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(run.raw) as fresh:
            write_cases(fresh)
    preprocessed = run.folder / "preprocessed" / DATASET
    preprocessed.mkdir(parents=True, exist_ok=True)
    replace_file(preprocessed / f"{PLANS}.json", json.dumps(run.plans).encode())
    replace_file(preprocessed / "dataset.json", (run.raw / "dataset.json").read_bytes())
    # nnU-Net copies it; what it says is in the plans already.
    replace_file(preprocessed / "dataset_fingerprint.json", b"{}")
    order = run.folder / f"{run.network}.json"
    replace_file(order, json.dumps(_order(run), indent=1).encode())
    _run(run, order, on_epoch)
    found = sorted(run.results.glob(f"*/*/fold_{FOLD}/checkpoint_final.pth"))
    if not found:
        raise InvalidInput("nnU-Net ended without a checkpoint", case=run.folder.name)
    return found[0]


def _order(run: NnunetRun) -> dict[str, Any]:
    device = run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "dataset": DATASET,
        "plans": PLANS,
        "preprocessed": str(run.folder.resolve() / "preprocessed" / DATASET),
        "configuration": run.configuration,
        "fold": FOLD,
        "trainer": run.trainer,
        "weights": None if run.weights is None else str(run.weights.resolve()),
        "epochs": run.epochs,
        "iterations": run.iterations,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "device": device,
        "processes": len(os.sched_getaffinity(0)),
    }


def _run(run: NnunetRun, order: Path, on_epoch: Callable[[int, int], None]) -> None:
    environment = {
        **os.environ,
        "nnUNet_raw": str(run.folder.resolve() / "raw"),
        "nnUNet_preprocessed": str(run.folder.resolve() / "preprocessed"),
        "nnUNet_results": str(run.results.resolve()),
        "nnUNet_n_proc_DA": str(run.loaders),
        "PYTHONUNBUFFERED": "1",
    }
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        [str(run.python or sys.executable), nnunet_trainer.__file__, str(order)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.strip():
                    last.append(line.strip())
                if epoch := re.search(r"\bEpoch (\d+)\s*$", line):
                    on_epoch(int(epoch[1]), run.epochs)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise InvalidInput(
            "nnU-Net's training failed",
            case=run.folder.name,
            got=f"exit status {process.returncode}: {' | '.join(last)}"[:1000],
            remedy="its log lies in the run's folder, under results; the same command goes on",
        )
