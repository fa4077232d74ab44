"""Weights of a MONAI network as one of our models.

    architecture: swin_unetr
    arguments: {feature_size: 48}
    classes: [aorta, gall_bladder, kidney_left, …]
    spacing_mm: [1.5, 1.5, 1.5]
    patch: [96, 96, 96]

The network is built by name from a short list; weights are read without running what they may
carry. Checkpoints of the AbdomenAtlas and SuPreM benchmarks come as ``{"net": {"module.…": …}}``;
``published`` has their descriptions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import onnx
import torch
from atlas_core.errors import InvalidInput
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import OrganScheme
from pydantic import Field
from torch import nn

from atlas_models.config import ForeignNetwork, TrainingConfig
from atlas_models.exported_network import ExportedNetwork, Head
from atlas_models.exporting import build_graph, read_checkpoint, tensors_of, write_graph
from atlas_models.importing.imported_model import ImportedModel
from atlas_models.importing.model_description import ModelDescription, read_description
from atlas_models.networks import ForeignOrgans, build_network

MONAI_KEY = "atlasloop.monai"
"""Metadata of the graph: architecture and arguments."""

TRAINABLE_BY_US = "monai"

STEPS, LEARNING_RATE = 2000, 1e-4
"""Of further training, unless somebody says otherwise."""

_NESTED = ("net", "state_dict", "model_state_dict", "model", "network_weights")
"""Where checkpoints keep the weights."""

_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.|backbone\.|network\.)+")
"""What wrappers (data-parallel training, compilation, a surrounding model) put before names."""

PlainArgument = bool | int | float | str | None | tuple[Any, ...] | dict[str, Any]


class WeightsDescription(ModelDescription):
    """A MONAI network."""

    architecture: Literal["unet", "swin_unetr", "segresnet", "unetr", "dynunet"]
    arguments: dict[str, PlainArgument] = Field(
        default_factory=dict,
        description="Of MONAI's class, beyond spatial_dims, in_channels and out_channels.",
    )


def import_monai(
    weights: Path,
    description_file: Path,
    folder: Path,
    *,
    name: str,
    version: int = 0,
    scheme: OrganScheme,
    serving: Mapping[str, Any] = MappingProxyType({}),
) -> ImportedModel:
    """Write the network of a weights file as an exported model in `folder`.

    Args:
        serving: further fields of its spec, such as its overlap.

    Raises:
        ConfigurationError: the description cannot be read.
        NotFound, CorruptFile: see `read_checkpoint`.
        InvalidInput: arguments that the network does not take, weights of another network, code in
            the weights, no class that is an organ of ours.
    """
    description = read_description(description_file, WeightsDescription)
    groups = description.groups(scheme, description_file.name)
    config = configuration(description, name, groups, serving)
    network = build(config, description_file.name)
    assert isinstance(network, ForeignOrgans)
    _load(network.network, _weights(weights), weights.name)
    served = ExportedNetwork(
        network.network,
        network.transform,
        Head(description.activation, tuple(groups.values())),
    )
    spec = description.spec(name, version, description.architecture, tuple(groups), serving)
    note = {"architecture": description.architecture, "arguments": description.arguments}
    graph = _graph(served, spec, {MONAI_KEY: json.dumps(note)}, description_file.name)
    left_out = description.left_out(scheme)
    try:
        spec = write_graph(graph, spec, folder, weights_of=(network, config))
    except InvalidInput as error:  # a weight beyond float16, in which we keep them
        spec = write_graph(graph, spec, folder)
        return ImportedModel(spec, f"no: {error}", left_out)
    return ImportedModel(spec, TRAINABLE_BY_US, left_out, {"config": config.model_dump_json()})


def configuration(
    description: WeightsDescription,
    name: str,
    groups: Mapping[str, tuple[int, ...]],
    serving: Mapping[str, Any],
) -> TrainingConfig:
    """By which our trainer trains the network further."""
    low, high, shift, scale = description.intensities
    return TrainingConfig(
        name=name,
        architecture=description.architecture,
        foreign=ForeignNetwork(
            arguments=description.arguments,
            outputs=len(description.classes),
            activation=description.activation,
            channels=tuple(groups.values()),
            shift=shift,
            scale=scale,
            axes=description.network_axes,
            flipped=description.flipped,
            serving=dict(serving),
        ),
        organs=tuple(groups),
        activation="softmax" if description.activation == "softmax" else "sigmoid",
        spacing_mm=description.spacing_mm,
        patch=description.patch,
        hu_window=(low, high),
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        foreground_share=0.5,
    )


def build(config: TrainingConfig, case: str) -> nn.Module:
    """The network of a description, freshly initialised.

    Raises:
        InvalidInput: arguments that it does not take.
    """
    try:
        return build_network(config).eval()
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise InvalidInput(
            f"MONAI builds no {config.architecture} of these arguments", case=case, got=error
        ) from None


def _graph(
    served: ExportedNetwork, spec: ModelSpec, notes: Mapping[str, str], case: str
) -> onnx.ModelProto:
    x, y, z = spec.patch
    try:
        with torch.no_grad():
            served(torch.zeros(1, 1, z, y, x))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InvalidInput(
            "the network cannot take a window of this size",
            case=case,
            got=(str(error).splitlines() or [type(error).__name__])[0][:200],
            remedy="patch must be that of the training, or halve as often as the network does",
        ) from None
    return build_graph(served, spec, notes)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    content = read_checkpoint(path)
    nested = next((key for key in _NESTED if isinstance(content.get(key), Mapping)), None)
    wrapped = {"weights": content} if nested is None else content
    found = tensors_of(wrapped, nested or "weights", path.name)
    return {_PREFIXES.sub("", name): tensor for name, tensor in found.items()}


def _load(network: nn.Module, weights: Mapping[str, torch.Tensor], case: str) -> None:
    expected = network.state_dict()
    for what, names in (
        ("lack a tensor of the network", expected.keys() - weights.keys()),
        ("hold a tensor that the network has not", weights.keys() - expected.keys()),
    ):
        if names:
            raise InvalidInput(
                f"the weights {what}",
                case=case,
                got=f"{min(names)} ({len(names)} such)",
                remedy="architecture and arguments must be those of the training",
            )
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise InvalidInput(
                f"tensor {name} has another shape",
                case=case,
                expected=tuple(tensor.shape),
                got=tuple(weights[name].shape),
                remedy="its first number is the count of classes, if it is the last layer's",
            )
    network.load_state_dict(dict(weights))
