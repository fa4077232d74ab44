"""What an imported nnU-Net came from, kept beside its graph, so that nnU-Net can train it further.

    <model>/nnunet/origin.json  plans.json  dataset.json  fold_<x>.safetensors

Weights are kept as safetensors: no file of the store can run code when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from atlas_core.atomic_writes import replace_file
from atlas_core.errors import CorruptFile, NotFound
from atlas_core.frozen_model import FrozenModel
from atlas_core.organs import OrganName
from pydantic import Field, ValidationError
from safetensors.torch import save

from atlas_models.exporting import read_checkpoint
from atlas_models.importing.nnunet_choices import NnunetChoices
from atlas_models.importing.nnunet_plans import TRAINED_AS, read_configuration, training_plans
from atlas_models.importing.nnunet_result import DATASET, PLANS, NnunetResult

ORIGIN_FOLDER = "nnunet"
ORIGIN_FILE = "origin.json"


class NnunetOrigin(FrozenModel):
    """How an nnU-Net became one of our models."""

    choices: NnunetChoices
    configuration: str = Field(description="Of the plans.")
    trainer: str = Field(description="Class of nnU-Net's trainer that it was trained by.")
    folds: tuple[str, ...] = Field(min_length=1, description="fold_0, …: networks averaged.")
    values: Mapping[OrganName, int] = Field(
        description="Organ → the value that stands for it in the dataset's label maps."
    )


def write_origin(origin: NnunetOrigin, found: NnunetResult, model: Path) -> None:
    """Write the origin into the folder of an exported model; not in one step."""
    folder = model / ORIGIN_FOLDER
    folder.mkdir()
    for name, content in ((PLANS, found.plans), (DATASET, found.dataset)):
        replace_file(folder / name, json.dumps(content, indent=1).encode())
    for fold in found.folds:
        replace_file(weights_of(model, fold.name), save(_contiguous(fold.weights)))
    replace_file(folder / ORIGIN_FILE, origin.model_dump_json(indent=1).encode())


def weights_of(model: Path, fold: str) -> Path:
    """The network of one fold."""
    return model / ORIGIN_FOLDER / f"{fold}.safetensors"


def read_origin(model: Path) -> NnunetOrigin:
    """The origin of an exported model.

    Raises:
        NotFound: it is no imported nnU-Net, or its origin was not kept.
        CorruptFile: what was kept cannot be read.
    """
    path = model / ORIGIN_FOLDER / ORIGIN_FILE
    try:
        return NnunetOrigin.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(
            "the model's nnU-Net was not kept",
            case=model.name,
            expected=f"{ORIGIN_FOLDER}/{ORIGIN_FILE}",
            remedy="import it again",
        ) from None
    except ValidationError as error:
        raise CorruptFile(
            f"{ORIGIN_FOLDER}/{ORIGIN_FILE} is unreadable", case=model.name, got=error
        ) from None


@dataclass(frozen=True)
class TrainingSource:
    """What nnU-Net trains further.

    Attributes:
        plans, dataset: for nnU-Net; `plans` names only classes that we know.
        flipped: of (z, y, x), the axes along which training files run against RAS+.
        choices: by which the result is imported again.
    """

    origin: NnunetOrigin
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    flipped: tuple[int, ...]
    choices: NnunetChoices


def training_source(model: Path) -> TrainingSource:
    """What nnU-Net needs to train an imported model further.

    Raises:
        NotFound, CorruptFile: see `read_origin`.
    """
    origin = read_origin(model)
    plans, dataset = (
        json.loads((model / ORIGIN_FOLDER / name).read_bytes()) for name in (PLANS, DATASET)
    )
    read = read_configuration(plans, origin.configuration, origin.choices.orientation)
    flipped = read.input_transform.flipped
    choices = origin.choices.model_copy(
        update={
            "orientation": "".join(
                letter[(2 - axis) in flipped] for axis, letter in enumerate(("RL", "AP", "SI"))
            ),
            "configuration": TRAINED_AS,
            "folds": "all",
            "checkpoint": None,
        }
    )
    return TrainingSource(
        origin, training_plans(plans, origin.configuration, read), dataset, flipped, choices
    )


def network_of(model: Path, fold: str) -> dict[str, torch.Tensor]:
    """The weights of one fold.

    Raises:
        NotFound, CorruptFile: they cannot be read.
    """
    return dict(read_checkpoint(weights_of(model, fold)))


def _contiguous(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # safetensors refuses tensors that share memory: nnU-Net's decoder holds the encoder, so some
    # tensors come under several names.
    return {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
