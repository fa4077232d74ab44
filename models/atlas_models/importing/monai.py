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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from atlas_core.errors import InvalidInput
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import OrganScheme
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR, UNet
from pydantic import Field
from torch import nn

from atlas_models.exporting import (
    ExportedNetwork,
    Head,
    InputTransform,
    build_graph,
    read_checkpoint,
    tensors_of,
    write_graph,
)
from atlas_models.importing.model_description import ModelDescription, read_description

MONAI_KEY = "atlasloop.monai"
"""Metadata of the graph: architecture and arguments."""

_NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "swin_unetr": SwinUNETR,
    "segresnet": SegResNet,
    "unetr": UNETR,
    "dynunet": DynUNet,
}

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
) -> ModelSpec:
    """Write the network of a weights file as an exported model in `folder`.

    Raises:
        ConfigurationError: the description cannot be read.
        NotFound, CorruptFile: see `read_checkpoint`.
        InvalidInput: arguments that the network does not take, weights of another network, code in
            the weights, no class that is an organ of ours.
    """
    description = read_description(description_file, WeightsDescription)
    groups = description.groups(scheme, description_file.name)
    network = build(description, description_file.name)
    _load(network, _weights(weights), weights.name)
    low, high, shift, scale = description.intensities
    input_transform = InputTransform(
        low, high, shift, scale, description.network_axes, description.flipped
    )
    served = ExportedNetwork(
        network, input_transform, Head(description.activation, tuple(groups.values()))
    )
    spec = description.spec(name, version, description.architecture, tuple(groups))
    note = {"architecture": description.architecture, "arguments": description.arguments}
    return write_graph(build_graph(served, spec, {MONAI_KEY: json.dumps(note)}), spec, folder)


def build(description: WeightsDescription, case: str) -> nn.Module:
    """The network of a description, freshly initialised.

    Raises:
        InvalidInput: arguments that it does not take.
    """
    try:
        return _NETWORKS[description.architecture](
            spatial_dims=3,
            in_channels=1,
            out_channels=len(description.classes),
            **description.arguments,
        ).eval()
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise InvalidInput(
            f"MONAI builds no {description.architecture} of these arguments",
            case=case,
            got=error,
        ) from None


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
