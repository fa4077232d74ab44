"""An nnU-Net v2 result folder as one of our models.

    <result>/plans.json  dataset.json  fold_<x>/checkpoint_final.pth

What `nnUNetv2_train` leaves, and what TotalSegmentator installs. The network is built by
nnU-Net's own library from the plans; normalisation, axis order, folds and softmax go into the
graph, so that a client sends Hounsfield units on the plans' spacing and nothing else.

Checkpoints are read without running what they may carry. What further training needs is kept beside
the graph, see `nnunet_origin`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from atlas_core.atomic_writes import move_folder, scratch_folder
from atlas_core.errors import InvalidInput
from atlas_core.geometry import Float3, Shape3
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import OrganScheme
from torch import nn

from atlas_models.exported_network import ExportedNetwork, FoldMean
from atlas_models.exporting import NO_SHA256, build_graph, write_graph
from atlas_models.importing.imported_model import ImportedModel
from atlas_models.importing.nnunet_choices import NnunetChoices
from atlas_models.importing.nnunet_labels import NnunetLabels, read_labels
from atlas_models.importing.nnunet_origin import NnunetOrigin, write_origin
from atlas_models.importing.nnunet_plans import NnunetConfiguration, build, read_configuration
from atlas_models.importing.nnunet_result import NnunetResult, configuration_of, read_result

NNUNET_KEY = "atlasloop.nnunet"
"""Metadata of the graph: where it comes from."""

TRAINABLE_BY_NNUNET = "nnunet"


def import_nnunet(
    result: Path, folder: Path, choices: NnunetChoices, scheme: OrganScheme
) -> ImportedModel:
    """Write the nnU-Net in `result` as an exported model in `folder`, which must not exist.

    Raises:
        NotFound: a file is missing.
        CorruptFile: a file cannot be read, or a plan lacks an entry.
        InvalidInput: a network, normalisation or label map that cannot be served, weights that do
            not fit the plans, an orientation or the meaning of a lesion that must be given.
    """
    found = read_result(result, choices)
    served, spec, labels = _served(found, choices, scheme, result.name)
    configuration = configuration_of(found, choices, result.name)
    note = {
        "dataset": found.plans.get("dataset_name", ""),
        "folds": [f"{fold.name}/{fold.checkpoint}" for fold in found.folds],
    }
    # In float32, as they came: rounded to float16 they would be off by 1e-3.
    graph = build_graph(served, spec, {NNUNET_KEY: json.dumps(note)})
    origin = NnunetOrigin(
        choices=choices,
        configuration=configuration,
        trainer=found.folds[0].trainer,
        folds=tuple(fold.name for fold in found.folds),
        values=labels.values,
    )
    with scratch_folder(folder.parent, prefix=f".{folder.name}-") as scratch:
        spec = write_graph(graph, spec, scratch / folder.name)
        write_origin(origin, found, scratch / folder.name)
        move_folder(scratch / folder.name, folder)
    return ImportedModel(spec, TRAINABLE_BY_NNUNET, labels.left_out, _provenance(found))


def load_nnunet(
    result: Path, choices: NnunetChoices, scheme: OrganScheme
) -> tuple[ExportedNetwork, ModelSpec]:
    """The nnU-Net in `result` as a torch module with our interface, and its spec (unhashed)."""
    served, spec, _ = _served(read_result(result, choices), choices, scheme, result.name)
    return served, spec


def _served(
    found: NnunetResult, choices: NnunetChoices, scheme: OrganScheme, case: str
) -> tuple[ExportedNetwork, ModelSpec, NnunetLabels]:
    configuration = configuration_of(found, choices, case)
    plan = read_configuration(found.plans, configuration, choices.orientation)
    _require_one_ct(found.dataset, case)
    _require_mirrors(found, choices, case)
    labels = read_labels(found.dataset, choices, scheme, case)
    networks = [
        _with_weights(
            build(plan, labels.outputs), fold.weights, f"{case}/{fold.name}/{fold.checkpoint}"
        )
        for fold in found.folds
    ]
    network = networks[0] if len(networks) == 1 else FoldMean(networks)
    served = ExportedNetwork(network, plan.input_transform, labels.head).eval()
    return served, _spec(plan, labels, choices), labels


def _spec(plan: NnunetConfiguration, labels: NnunetLabels, choices: NnunetChoices) -> ModelSpec:
    # From the network's axes to z, y, x, and from there to x, y, z.
    z, y, x = (plan.input_transform.axes.index(axis) for axis in range(3))
    spacing: Float3 = (plan.spacing_mm[x], plan.spacing_mm[y], plan.spacing_mm[z])
    patch: Shape3 = (plan.patch[x], plan.patch[y], plan.patch[z])
    assert labels.head.activation != "none"
    return ModelSpec(
        name=choices.name,
        version=choices.version,
        architecture=f"nnunet_{plan.architecture.lower()}",
        organs=labels.organs,
        spacing_mm=spacing,
        patch=patch,
        hu_window=(plan.input_transform.low, plan.input_transform.high),
        activation=labels.head.activation,
        sha256=NO_SHA256,
        padding_hu=plan.input_transform.shift,  # zero, once normalised
        **choices.serving,
    )


def _provenance(found: NnunetResult) -> dict[str, str]:
    provenance = {
        "checkpoints": ", ".join(f"{fold.name}/{fold.checkpoint}" for fold in found.folds),
        "trainer": found.folds[0].trainer,
    }
    if found.unfinished:
        provenance["folds_left_out"] = f"{', '.join(found.unfinished)}: not trained to the end"
    return provenance


def _with_weights(network: nn.Module, weights: Mapping[str, torch.Tensor], case: str) -> nn.Module:
    # Saved from several GPUs, or after torch.compile.
    stripped = {
        re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor for name, tensor in weights.items()
    }
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in stripped:
            raise InvalidInput("the weights lack a tensor of the network", case=case, got=name)
        if stripped[name].shape != tensor.shape:
            raise InvalidInput(
                f"tensor {name} does not fit the plans",
                case=case,
                expected=tuple(tensor.shape),
                got=tuple(stripped[name].shape),
                remedy="plans.json, dataset.json and checkpoint must come from one training",
            )
    # Deep supervision's extra outputs are in the file and not needed.
    network.load_state_dict({name: stripped[name].float() for name in expected})
    return network.eval()


def _require_one_ct(dataset: Mapping[str, Any], case: str) -> None:
    channels = dataset.get("channel_names") or dataset.get("modality") or {"0": "CT"}
    if len(channels) != 1:
        raise InvalidInput(
            "the network takes several image channels; a case has one CT",
            case=case,
            expected="one channel",
            got=channels,
        )


def _require_mirrors(found: NnunetResult, choices: NnunetChoices, case: str) -> None:
    """Predictions may be mirrored only along axes that were mirrored in training."""
    if not choices.serving.get("mirrored"):
        return
    for fold in found.folds:
        if set(fold.mirrored_axes) != {0, 1, 2}:
            raise InvalidInput(
                "the network was not trained on volumes that were mirrored along every axis",
                case=f"{case}/{fold.name}",
                expected="mirrored axes 0, 1, 2",
                got=", ".join(map(str, fold.mirrored_axes)) or "none",
                remedy="leave --mirrored out",
            )
