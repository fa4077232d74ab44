"""The folder that `nnUNetv2_train` leaves: which files of it count, and what they hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from atlas_core.errors import CorruptFile, InvalidInput, NotFound

from atlas_models.exporting import read_checkpoint, tensors_of
from atlas_models.importing.nnunet_choices import BEST, FINAL, NnunetChoices

PLANS = "plans.json"
DATASET = "dataset.json"


@dataclass(frozen=True)
class TrainedFold:
    """One fold of a result.

    Attributes:
        name: ``fold_0``, ``fold_all``, …
        checkpoint: name of the file that counts.
        weights: the network's tensors.
        content: the rest of the checkpoint.
    """

    name: str
    checkpoint: str
    weights: Mapping[str, torch.Tensor]
    content: Mapping[str, Any]

    @property
    def trainer(self) -> str:
        """Class of nnU-Net's trainer."""
        named = str(self.content.get("trainer_name"))
        return named if named.isidentifier() and named != "None" else "nnUNetTrainer"

    @property
    def configuration(self) -> str | None:
        """That it was trained as."""
        arguments = self.content.get("init_args")
        named = arguments.get("configuration") if isinstance(arguments, Mapping) else None
        return named if isinstance(named, str) else None

    @property
    def mirrored_axes(self) -> tuple[int, ...]:
        """Axes that were mirrored in training, so that predictions may be."""
        return tuple(self.content.get("inference_allowed_mirroring_axes") or ())


@dataclass(frozen=True)
class NnunetResult:
    """A result folder, as far as it counts.

    Attributes:
        plans, dataset: ``plans.json`` and ``dataset.json``.
        folds: at least one.
        unfinished: folds that take no part, as others are trained to their end.
    """

    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    folds: tuple[TrainedFold, ...]
    unfinished: tuple[str, ...] = ()


def read_result(result: Path, choices: NnunetChoices) -> NnunetResult:
    """Reads what counts of a result folder.

    Raises:
        NotFound: a file is missing.
        CorruptFile: a file cannot be read.
        InvalidInput: a checkpoint asks for code to be run, or holds no weights of nnU-Net v2.
    """
    plans, dataset = _json(result, PLANS), _json(result, DATASET)
    files, unfinished = _checkpoints(result, choices)
    folds = tuple(_fold(path, result.name) for path in files)
    return NnunetResult(plans, dataset, folds, unfinished)


def _fold(path: Path, case: str) -> TrainedFold:
    content = dict(read_checkpoint(path))
    weights = tensors_of(content, "network_weights", f"{case}/{path.parent.name}/{path.name}")
    del content["network_weights"]
    return TrainedFold(path.parent.name, path.name, weights, content)


def _json(result: Path, name: str) -> dict[str, Any]:
    path = result / name
    try:
        # Some editors put a mark in front.
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise _no_result(result, name) from None
    except ValueError as error:
        raise CorruptFile(f"{name} is not JSON", case=result.name, got=error) from None
    if not isinstance(content, dict):
        raise CorruptFile(f"{name} is no JSON object", case=result.name)
    return content


def _no_result(result: Path, name: str) -> NotFound:
    if (result / "plans.pkl").exists() or any(result.glob("fold_*/*.model.pkl")):
        got, remedy = "an nnU-Net v1 result", "train it with nnU-Net v2"
    else:
        inner = sorted(path.parent.name for path in result.glob(f"*/{PLANS}"))
        got = f"results inside: {', '.join(inner)}" if inner else f"no {name}"
        remedy = "name the folder <trainer>__<plans>__<configuration>"
    return NotFound(
        f"no nnU-Net v2 result in folder {result.name}",
        expected=f"{name} and fold_<x>/{FINAL}",
        got=got,
        remedy=remedy,
    )


def _checkpoints(result: Path, choices: NnunetChoices) -> tuple[list[Path], tuple[str, ...]]:
    """The checkpoint of every fold that counts, and the folds that others leave behind."""
    if choices.folds == "all":
        names = sorted(path.name for path in result.glob("fold_*") if path.is_dir())
        wanted = [choices.checkpoint] if choices.checkpoint else [FINAL, BEST]
        for file in wanted:
            trained = [name for name in names if (result / name / file).is_file()]
            if trained:
                # A network trained on all cases stands for itself: no average with the folds.
                chosen = [name for name in trained if name != "fold_all"] or trained
                behind = tuple(name for name in names if name not in trained)
                return [result / name / file for name in chosen], behind
        raise _no_checkpoint(result, names, " or ".join(wanted))
    names = [f"fold_{fold.removeprefix('fold_')}" for fold in choices.folds]
    return [_checkpoint(result, name, choices) for name in names], ()


def _checkpoint(result: Path, name: str, choices: NnunetChoices) -> Path:
    wanted = [choices.checkpoint] if choices.checkpoint else [FINAL, BEST]
    for file in wanted:
        if (result / name / file).is_file():
            return result / name / file
    raise _no_checkpoint(result, [name], " or ".join(wanted))


def _no_checkpoint(result: Path, names: list[str], wanted: str) -> NotFound:
    there = list(_files(result))
    return NotFound(
        f"the result holds no trained fold with {wanted}",
        case=result.name,
        expected=", ".join(f"{name}/{wanted}" for name in names) or f"fold_<x>/{FINAL}",
        got=", ".join(there) or "no checkpoint",
        remedy="wait for the end of the training, or name one of these files (--checkpoint)"
        if there
        else "train it first",
    )


def _files(result: Path) -> Iterator[str]:
    for path in sorted(result.glob("fold_*/checkpoint_*.pth")):
        yield f"{path.parent.name}/{path.name}"


def configuration_of(result: NnunetResult, choices: NnunetChoices, case: str) -> str:
    """Name of the configuration of the plans that the folds were trained as.

    Raises:
        InvalidInput: the checkpoints do not say it, or contradict each other.
    """
    if choices.configuration:
        return choices.configuration
    named = {fold.configuration for fold in result.folds}
    if len(named) == 1 and (only := named.pop()) is not None:
        return only
    raise InvalidInput(
        "the checkpoints do not say which configuration they were trained with",
        case=case,
        got=", ".join(sorted(str(one) for one in named)),
        remedy=f"name it (--configuration): {', '.join(result.plans.get('configurations', {}))}",
    )
