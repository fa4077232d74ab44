"""Training on the labelled cases of a catalog: choose cases, train or fine-tune, export.

The result is a folder with ``model.onnx``, ``model.json``, ``weights.safetensors`` and
``provenance.json``; registering and promoting the model is left to the caller.
`atlas_models.train_command` runs this from a shell and under ``torchrun``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from atlas_core.atomic_writes import discard_folder, move_folder, replace_file, scratch_folder
from atlas_core.catalog import Catalog
from atlas_core.errors import InvalidInput
from atlas_core.frozen_model import FrozenModel
from atlas_core.model_spec import ModelRef, ModelSpec
from atlas_core.records import DatasetName, LabelSource
from atlas_core.store import CaseStore
from pydantic import Field

from atlas_models.config import TrainingConfig, read_config
from atlas_models.exporting import WEIGHTS_FILE, export_model, measure_parity, read_weights
from atlas_models.training.network_training import (
    RunOptions,
    TrainedNetwork,
    TrainingProgress,
    finetune,
    train,
)
from atlas_models.training.patches import PatchSampler
from atlas_models.training.stored_cases import (
    ChosenCase,
    LabelChoice,
    StoredCases,
    choose_cases,
    load_cases,
    require_labelled,
)

PROVENANCE_FILE = "provenance.json"
CACHE_FOLDER = "cases"
MODEL_FOLDER = "model"

LIBRARIES = ("torch", "monai", "lightning-fabric", "onnx", "onnxruntime", "numpy", "scipy")


class TrainRequest(FrozenModel):
    """What to train, on which cases, and where the result goes."""

    config: str = Field(
        description="A YAML file, or the name of a configuration that ships: demo/unet, …",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Fields that replace those of the configuration."
    )
    datasets: tuple[DatasetName, ...] = Field(default=(), description="Only these; empty: all.")
    sources: tuple[LabelSource, ...] = Field(
        default=(LabelSource.ORIGINAL, LabelSource.REVISED),
        description="Labels to learn from; per organ the best of them counts.",
    )
    labels: LabelChoice = Field(
        default=LabelChoice.IN_FORCE,
        description="The best label file of each organ, or the assembled map of the case.",
    )
    validation_share: float = Field(
        default=0.1, ge=0, lt=1, description="Of the cases, held out by their ids."
    )
    weights: Path | None = Field(
        default=None, description="Fine-tune from these: a weights file or the folder of a model."
    )
    run_folder: Path = Field(
        description="Checkpoints and curves; a run continues where it was killed."
    )
    output: Path | None = Field(
        default=None, description="Folder of the exported model; by default run_folder/model."
    )
    version: int = Field(default=0, ge=0, description="t of the exported M_t.")
    parent: ModelRef | None = Field(default=None, description="What it was fine-tuned from.")
    checkpoint_every: int = Field(default=50, ge=1, description="Steps between checkpoints.")
    accelerator: str = Field(default="auto", description="cpu, cuda or auto.")
    devices: int = Field(default=1, ge=1, description="Processes per machine (torchrun).")
    nodes: int = Field(default=1, ge=1, description="Machines (torchrun).")
    loaders: int = Field(default=0, ge=0, description="Threads that prepare batches ahead.")


@dataclass(frozen=True)
class TrainOutcome:
    """A trained and exported model.

    Attributes:
        folder: with model.onnx, model.json, weights.safetensors and provenance.json.
        metrics, provenance: as `atlas_core.records.Model` keeps them.
        refused: case id → why it was left out.
    """

    folder: Path
    spec: ModelSpec
    metrics: dict[str, float]
    provenance: dict[str, str]
    refused: dict[str, str]


def train_from_catalog(
    request: TrainRequest,
    *,
    store: CaseStore,
    catalog: Catalog,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> TrainOutcome | None:
    """Train (or, with weights, fine-tune) a model on labelled cases and export it.

    The model's folder appears whole, after its graph was checked against the network; a run that
    fails leaves none, and the one that was there stays.

    Args:
        on_progress: called after every step.
        on_case: called with the number of cases that are ready, and of all.

    Returns:
        None in the processes of a distributed run that are not the first.

    Raises:
        ConfigurationError: the configuration cannot be read or cannot work.
        NotFound: no such dataset, file or weights.
        InvalidInput: no labelled case, an organ that nobody has labelled, weights of another
            network, a loss that is no number.
        UnknownLabel: an organ that the atlas does not have.
        Conflict, CorruptFile: the run folder holds another run or a damaged checkpoint.
    """
    scheme = catalog.organ_scheme()
    config = read_config(request.config, request.overrides).of_atlas(scheme)
    initial = None if request.weights is None else _initial(request.weights, config)
    chosen = choose_cases(
        catalog,
        config,
        datasets=request.datasets,
        sources=request.sources,
        labels=request.labels,
    )
    require_labelled(config, (label.organ for one in chosen for label in one.labels), "case")
    cases = load_cases(
        store,
        chosen,
        config,
        validation_share=request.validation_share,
        cache=request.run_folder / CACHE_FOLDER,
        scheme=scheme,
        on_case=on_case,
    )
    learnt = np.any([case.labelled for case in cases.training], axis=0)
    organs = (organ for organ, there in zip(config.organs, learnt, strict=True) if there)
    require_labelled(config, organs, "case that is not held out")
    trained = _trained(request, config, cases, initial, on_progress)
    if int(os.environ.get("RANK", "0")) != 0:
        return None
    return _exported(request, config, cases, trained)


def _initial(path: Path, config: TrainingConfig) -> dict[str, torch.Tensor]:
    """The weights to start from, if they are of the configuration's network."""
    tensors, stored = read_weights(path)
    if stored is not None and stored.organs != config.organs:
        raise InvalidInput(
            "the weights are of a model with other organs",
            case=path.name,
            expected=", ".join(config.organs),
            got=", ".join(stored.organs),
        )
    return tensors


def _trained(
    request: TrainRequest,
    config: TrainingConfig,
    cases: StoredCases,
    initial: dict[str, torch.Tensor] | None,
    on_progress: Callable[[TrainingProgress], None] | None,
) -> TrainedNetwork:
    start = "" if request.weights is None else _weights_sha256(request.weights)
    run = RunOptions(
        folder=request.run_folder,
        checkpoint_every=request.checkpoint_every,
        data_key=f"{cases.data_key} {start}",
        accelerator=request.accelerator,
        devices=request.devices,
        nodes=request.nodes,
        loaders=request.loaders,
    )
    held = {"validation": cases.validation, "run": run, "on_progress": on_progress}
    if initial is None:
        return train(config, cases.training, **held)  # type: ignore[arg-type]
    source = "" if request.weights is None else request.weights.name
    return finetune(initial, config, cases.training, source=source, **held)  # type: ignore[arg-type]


def _weights_sha256(path: Path) -> str:
    file = path / WEIGHTS_FILE if path.is_dir() else path
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _exported(
    request: TrainRequest, config: TrainingConfig, cases: StoredCases, trained: TrainedNetwork
) -> TrainOutcome:
    folder = request.output or request.run_folder / MODEL_FOLDER
    metrics, provenance = _metrics(trained), _provenance(request, config, cases, trained)
    with scratch_folder(folder.parent, prefix=".model-") as scratch:
        fresh = scratch / "fresh"
        spec = export_model(trained.network, config, fresh, version=request.version)
        window = PatchSampler(cases.training, config.patch, config.seed).draw(0, 1).hu[0, 0]
        measure_parity(trained.network, config, fresh, [window])
        replace_file(fresh / PROVENANCE_FILE, _as_json(spec, metrics, provenance, cases))
        discard_folder(folder, scratch)  # what an earlier export of this run left
        move_folder(fresh, folder)
    return TrainOutcome(folder, spec, metrics, provenance, cases.refused)


def _metrics(trained: TrainedNetwork) -> dict[str, float]:
    last = trained.losses[-20:]
    metrics = {"loss": float(np.mean(last))} if last else {}
    if trained.best is not None:
        metrics["validation_dice"] = trained.best.mean_dice
        for organ, dice in trained.best.dice.items():
            metrics[f"validation_dice_{organ}"] = dice
    return metrics


def _provenance(
    request: TrainRequest, config: TrainingConfig, cases: StoredCases, trained: TrainedNetwork
) -> dict[str, str]:
    """How the model was made, as the catalog records it."""
    counts = {
        source.value: str(sum(label.source is source for label in cases.labels))
        for source in LabelSource
    }
    provenance = {
        "config": config.model_dump_json(),
        "data_sha256": cases.data_key,
        "datasets": ", ".join(sorted({chosen.case.dataset for chosen in cases.chosen})),
        "training_cases": str(len(cases.training)),
        "validation_cases": str(len(cases.validation)),
        **{f"{source}_labels": count for source, count in counts.items()},
        "steps": str(len(trained.losses)),
        "kept_step": str(trained.best.step if trained.best else len(trained.losses)),
        "libraries": ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES),
    }
    if request.weights is not None:
        provenance["started_from_sha256"] = _weights_sha256(request.weights)
    if request.parent is not None:
        provenance["parent"] = str(request.parent)
    return provenance


def _as_json(
    spec: ModelSpec, metrics: dict[str, float], provenance: dict[str, str], cases: StoredCases
) -> bytes:
    """The whole record: what the catalog keeps, and every label by its checksum."""
    held = {case.id for case in cases.validation}
    return provenance_file(spec, metrics, provenance, cases.chosen, held, cases.refused)


def provenance_file(
    spec: ModelSpec,
    metrics: dict[str, float],
    provenance: dict[str, str],
    cases: Iterable[ChosenCase],
    held: Collection[str],
    refused: dict[str, str],
) -> bytes:
    """Content of `PROVENANCE_FILE`.

    Args:
        held: ids of cases that were held out.
        refused: case id → why it was left out.
    """
    record = {
        "sha256": spec.sha256,
        "metrics": metrics,
        "provenance": provenance,
        "cases": {
            chosen.case.id: {
                "content_sha256": chosen.case.content_sha256,
                "role": "validation" if chosen.case.id in held else "training",
                "labels": {
                    label.organ: {"source": label.source.value, "sha256": label.sha256}
                    for label in chosen.labels
                },
            }
            for chosen in cases
        },
        "refused": refused,
    }
    return (json.dumps(record, indent=1) + "\n").encode()
