"""The weights of a network beside its exported graph: ``weights.safetensors``.

A graph cannot always be trained on (an exporter folds constants, renames and transposes), so what
is trained further is this file: every tensor under its name in the network's ``state_dict``, floats
halved to float16 as in the graph (`export.round_weights`), and in the file's metadata, under
`CONFIG_KEY`, the `TrainingConfig` as JSON from which `networks.build_network` builds the network.

Safetensors runs no code when it is read, unlike a pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from atlas_core.atomic_writes import replace_file
from atlas_core.errors import CorruptFile, InvalidInput, NotFound
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from atlas_models.config import TrainingConfig
from atlas_models.networks import build_network

WEIGHTS_FILE = "weights.safetensors"

CONFIG_KEY = "atlasloop.training"
"""Metadata of the file (and of the ONNX graph) with the `TrainingConfig`."""


def write_weights(network: nn.Module, config: TrainingConfig, folder: Path) -> Path:
    """Write ``<folder>/weights.safetensors``, all or nothing.

    Args:
        network: an `OrganNetwork` as `build_network(config)` makes it.

    Returns:
        The file.

    Raises:
        InvalidInput: a weight is not finite, or too large for float16.
    """
    first = _first_names(network)
    stored = {
        name: _halved(name, tensor)
        for name, tensor in network.state_dict().items()
        if first[name] == name
    }
    data = save(stored, metadata={CONFIG_KEY: config.model_dump_json()})
    path = folder / WEIGHTS_FILE
    replace_file(path, data)
    return path


def _first_names(network: nn.Module) -> dict[str, str]:
    """For every name of the ``state_dict`` the first name of the same tensor: a DynUNet knows each
    of its layers twice."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(tensor), name)
        for name, tensor in network.state_dict(keep_vars=True).items()
    }


def _halved(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as it is stored: contiguous, on the CPU, floats in float16."""
    tensor = tensor.detach().to("cpu")
    if tensor.is_floating_point():
        tensor = tensor.half()
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInput(
                f"weight {name} does not fit float16", expected="finite values up to 65504"
            )
    # `clone`: safetensors refuses tensors that share memory.
    return tensor.contiguous().clone()


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], TrainingConfig | None]:
    """The tensors of a weights file, floats as float32, and the configuration if it holds one.

    Args:
        path: the file, or the folder that holds `WEIGHTS_FILE`.

    Raises:
        NotFound: there is no such file.
        CorruptFile: it is cut short, no safetensors file, or its configuration is unreadable.
    """
    path = path / WEIGHTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise NotFound("no weights file", case=path.name, expected=WEIGHTS_FILE)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            stored = (file.metadata() or {}).get(CONFIG_KEY)
            tensors = {name: _restored(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        config = None if stored is None else TrainingConfig.model_validate_json(stored)
    except (SafetensorError, ValidationError, OSError) as error:
        raise CorruptFile(
            "unreadable weights", case=path.name, expected="a safetensors file", got=str(error)
        ) from error
    return tensors, config


def _restored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


_OTHER_NETWORK: Final = (
    "they are of another network: use the configuration that they were trained with"
)


def load_weights(network: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Put `tensors` into `network`; all of them must fit, or nothing changes.

    A tensor that the network knows by several names may come under any one of them.

    Args:
        source: name of the file that they came from, for the message.

    Raises:
        InvalidInput: keys are missing, unexpected or of another shape.
    """
    expected = network.state_dict()
    first = _first_names(network)
    known = {first.get(name, name): tensor for name, tensor in tensors.items()}
    tensors = {n: known[first[n]] for n in expected if first[n] in known} | tensors
    missing, surplus = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing:
        raise InvalidInput(
            "the weights lack keys of the network",
            case=source,
            expected=f"{len(expected)} keys",
            got=f"{len(missing)} missing, first {min(missing)}",
            remedy=_OTHER_NETWORK,
        )
    if surplus:
        raise InvalidInput(
            "the weights have keys that the network has not",
            case=source,
            expected=f"{len(expected)} keys",
            got=f"{len(surplus)} more, first {min(surplus)}",
            remedy=_OTHER_NETWORK,
        )
    for name, tensor in sorted(expected.items()):
        if tensor.shape != tensors[name].shape:
            raise InvalidInput(
                f"weight {name} has another shape",
                case=source,
                expected=tuple(tensor.shape),
                got=tuple(tensors[name].shape),
                remedy=_OTHER_NETWORK,
            )
    network.load_state_dict(tensors)


def network_from(path: Path) -> tuple[nn.Module, TrainingConfig]:
    """The network of a weights file that says how it was trained; in training mode.

    Raises:
        NotFound, CorruptFile: see `read_weights`.
        InvalidInput: the file holds no configuration, or weights of another network.
    """
    tensors, config = read_weights(path)
    if config is None:
        raise InvalidInput(
            "the weights do not say how their network is built", case=path.name, expected=CONFIG_KEY
        )
    network = build_network(config)
    load_weights(network, tensors, path.name)
    return network, config
