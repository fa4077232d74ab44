"""Runs nnU-Net's own trainer on one order, in a process, and maybe an environment, of its own.

    PYTHON nnunet_trainer.py ORDER.json

Started by `nnunet_training`, which lays the folders out and says by ``nnUNet_raw``,
``nnUNet_preprocessed`` and ``nnUNet_results`` where they are. Imports nothing of ours: PYTHON needs
nnunetv2 only. Started again after a kill, it goes on from nnU-Net's last checkpoint.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PREPARED = "prepared"
"""Beside the preprocessed cases, once they are complete."""


def main(order: dict[str, Any]) -> None:
    """Prepare the cases, if that was not done before, and train.

    Args:
        order: dataset, plans (their names), preprocessed (folder), configuration, fold, trainer,
            weights (a file with ``network_weights``, or null: from scratch), epochs, iterations (of
            an epoch), learning_rate, seed (or null: another one every time), device, processes.
    """
    import torch

    preprocessed = Path(order["preprocessed"])
    if not (preprocessed / PREPARED).exists():
        _prepare(order)
        (preprocessed / PREPARED).touch()
    if order["device"] == "cpu":
        torch.set_num_threads(order["processes"])
    if order["seed"] is not None:
        _seed(order["seed"])
    trainer = _trainer(order, preprocessed)
    folder = Path(trainer.output_folder)
    if (folder / "checkpoint_final.pth").exists():
        return
    trainer.initialize()
    latest = folder / "checkpoint_latest.pth"
    if latest.exists():
        trainer.load_checkpoint(str(latest))
    elif order["weights"] is not None:
        weights = torch.load(order["weights"], map_location="cpu", weights_only=True)
        _load(trainer.network, weights["network_weights"])
    trainer.run_training()


def _prepare(order: dict[str, Any]) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    DefaultPreprocessor(verbose=False).run(
        order["dataset"], order["configuration"], order["plans"], order["processes"]
    )


def _trainer(order: dict[str, Any], preprocessed: Path) -> Any:
    import torch

    kind = trainer_class(order["trainer"])
    plans = json.loads((preprocessed / f"{order['plans']}.json").read_text())
    plans["continue_training"] = False
    dataset = json.loads((preprocessed / "dataset.json").read_text())
    trainer = kind(
        plans, order["configuration"], order["fold"], dataset, device=torch.device(order["device"])
    )
    trainer.num_epochs = order["epochs"]
    trainer.num_iterations_per_epoch = order["iterations"]
    trainer.num_val_iterations_per_epoch = 1
    trainer.initial_lr = order["learning_rate"]
    trainer.save_every = 1
    return trainer


def trainer_class(name: str) -> Any:
    """Class of nnU-Net's trainers. Several, joined by ``+``, are one of the first one's name: what
    one of them does its own way, it does so, too."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    kinds = []
    for one in name.split("+"):
        kind = _named(one)
        if kind is None:
            sys.stderr.write(f"no trainer {one} in this nnU-Net: its usual one instead\n")
        elif kind is not nnUNetTrainer:
            kinds.append(kind)
    if len(kinds) < 2:
        return kinds[0] if kinds else nnUNetTrainer
    return type(kinds[0].__name__, tuple(kinds), {})


def _named(name: str) -> Any | None:
    """The trainer of this name, from the module that defines it: nnU-Net's own search imports all
    of them, and fails where one of them needs a package that is not installed."""
    trainers = import_module("nnunetv2.training.nnUNetTrainer")
    folder = Path(trainers.__path__[0])
    defined = re.compile(rf"^class {re.escape(name)}\b", re.MULTILINE)
    for path in sorted(folder.rglob("*.py")):
        if defined.search(path.read_text(encoding="utf-8")):
            parts = path.relative_to(folder).with_suffix("").parts
            return getattr(import_module(".".join((trainers.__name__, *parts))), name)
    try:  # a site's own
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        return recursive_find_trainer_class_by_name(name)
    except Exception:  # as versions differ
        return None


def _seed(seed: int) -> None:
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (what nnU-Net draws patches by)
    torch.manual_seed(seed)


def _load(network: Any, weights: dict[str, Any]) -> None:
    """All of the weights, heads included: nnU-Net's own `load_pretrained_weights` leaves the last
    layers out, as it expects other classes."""
    inner = getattr(network, "_orig_mod", network)
    inner.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
