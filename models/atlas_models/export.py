"""From a trained network to the folder that is served: `model.onnx` and `model.json`.

The graph holds everything between Hounsfield units and bytes, so that whoever runs it (ONNX
Runtime, OpenVINO, TensorRT) sends float32 HU and receives uint8; see `atlas_core.model_spec`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from atlas_core.errors import InvalidInput
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from numpy.typing import NDArray
from torch import nn

from atlas_models.config import TrainingConfig
from atlas_models.networks import build_network
from atlas_models.training import scale_hu
from atlas_models.triton_repository import GRAPH_FILE, SPEC_FILE, read_spec

OPSET = 20
"""Newest opset that ONNX Runtime, OpenVINO and TensorRT all read."""

MAX_BATCH = 64
"""Windows in one request, at most: what the exporter must know; servers allow far fewer."""

RESTORED_SUFFIX = ".float32"
"""Name of a weight behind its cast from float16."""

SPEC_KEY = "atlasloop.spec"
"""Metadata of the ONNX file with its ModelSpec: a file that lost its folder explains itself."""

CONFIG_KEY = "atlasloop.training"
"""Metadata with the `TrainingConfig`, from which the network is built again to train on."""

PROBABILITY_TOLERANCE = 1e-3
"""Between PyTorch and ONNX Runtime; a quarter of one step of 255. ONNX Runtime sums the 64³ voxels
of an instance norm one by one in float32: measured up to 4e-4 on a phantom, where PyTorch stays
within 5e-6 of float64."""

BYTE_TOLERANCE = 1
"""A probability on the border between two bytes may round either way."""


class ServedNetwork(nn.Module):
    """What the graph computes: HU ``[batch, 1, z, y, x]`` → uint8 ``[batch, organ, z, y, x]``."""

    def __init__(self, network: nn.Module, hu_window: tuple[float, float]) -> None:
        super().__init__()
        self.network = network
        self.hu_window = hu_window

    def probabilities(self, ct: torch.Tensor) -> torch.Tensor:
        """Soft predictions in [0, 1] before they are rounded."""
        return torch.sigmoid(self.network(scale_hu(ct, self.hu_window)))

    def forward(self, ct: torch.Tensor) -> torch.Tensor:
        return torch.round(self.probabilities(ct) * 255.0).to(torch.uint8)


@dataclass(frozen=True)
class Parity:
    """Largest difference between PyTorch and the exported graph on some windows."""

    probability: float
    byte: int


def export_model(
    network: nn.Module, config: TrainingConfig, folder: Path, *, version: int = 0
) -> ModelSpec:
    """Write `network` as ``<folder>/model.onnx`` and ``model.json``, all or nothing per file.

    Returns:
        The spec, with the checksum of the ONNX file.

    Raises:
        onnx.checker.ValidationError: the graph is not valid ONNX.
    """
    round_weights(network)
    served = ServedNetwork(network, config.hu_window).eval()
    model = _to_onnx(served, config)
    _store_halved(model)
    spec = _spec(config, version, "0" * 64)
    _set_metadata(model, spec, config)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString(deterministic=True)
    spec = spec.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / GRAPH_FILE, data)
    replace_file(folder / SPEC_FILE, (spec.model_dump_json(indent=1) + "\n").encode())
    return spec


def _spec(config: TrainingConfig, version: int, sha256: str) -> ModelSpec:
    return ModelSpec(
        name=config.name,
        version=version,
        architecture=config.architecture,
        organs=config.organs,
        spacing_mm=config.spacing_mm,
        patch=config.patch,
        hu_window=config.hu_window,
        activation="sigmoid",
        sha256=sha256,
    )


def round_weights(network: nn.Module) -> None:
    """Round the weights of `network` to float16 in place, so that it is what its export stores.

    Half the bytes on disk and over the wire; arithmetic stays float32 everywhere.
    """
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())


def _to_onnx(served: ServedNetwork, config: TrainingConfig) -> onnx.ModelProto:
    x, y, z = config.patch
    # Two windows: the exporter takes an axis of length one for a constant.
    example = torch.zeros(2, 1, z, y, x)
    with _quiet_exporter():
        program = torch.onnx.export(
            served,
            (example,),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes={"ct": {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}},
            opset_version=OPSET,
            dynamo=True,
        )
    assert program is not None  # only the older exporter returns nothing
    return program.model_proto


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's progress marks, its notes on packages that are not needed here, and
    its warnings of what it will do differently one day."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _store_halved(model: onnx.ModelProto) -> None:
    """Store float32 weights as float16 under their own names, each with a cast back behind it."""
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim == 0:
            continue
        restored = f"{tensor.name}{RESTORED_SUFFIX}"
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[place] = restored
        casts.append(
            onnx.helper.make_node("Cast", [tensor.name], [restored], to=onnx.TensorProto.FLOAT)
        )
        halved = values.astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(halved, tensor.name))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    halved_names = {cast.input[0] for cast in casts}
    described = [value for value in graph.value_info if value.name not in halved_names]
    del graph.value_info[:]
    graph.value_info.extend(described)


def _set_metadata(model: onnx.ModelProto, spec: ModelSpec, config: TrainingConfig) -> None:
    """Put spec and configuration into the file; drop what the exporter notes of source lines."""
    graph = model.graph
    noted = (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for value in noted:
        del value.metadata_props[:]
        value.doc_string = ""
    model.producer_name = "atlasloop"
    onnx.helper.set_model_props(
        model,
        {
            # The checksum is of the file, so the file cannot hold it.
            SPEC_KEY: spec.model_dump_json(exclude={"sha256"}),
            CONFIG_KEY: config.model_dump_json(),
        },
    )


def load_network(folder: Path) -> tuple[nn.Module, TrainingConfig]:
    """The network of an exported model, with its weights, and how it was trained: to train on.

    Only where the exporter keeps every weight as it is (`nnunet`): it folds the slopes of a U-Net's
    PReLU and the transposed matrices of Swin UNETR into other constants.

    Raises:
        InvalidInput: the graph was not exported by this module, or lacks a weight.
        NotFound, CorruptFile: see `read_spec`.
    """
    read_spec(folder)
    model = onnx.load_model(folder / GRAPH_FILE, load_external_data=False)
    props = {prop.key: prop.value for prop in model.metadata_props}
    if CONFIG_KEY not in props:
        raise InvalidInput(
            "the graph does not say how it was trained", case=folder.name, expected=CONFIG_KEY
        )
    config = TrainingConfig.model_validate_json(props[CONFIG_KEY])
    served = ServedNetwork(build_network(config), config.hu_window)
    stored = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).astype(np.float32))
        for tensor in model.graph.initializer
    }
    # A network may hold one weight under two names, of which the graph keeps either.
    names = list(served.named_parameters(remove_duplicate=False))
    weights = {name: stored[name] for name, _ in names if name in stored}
    found = {id(parameter) for name, parameter in names if name in weights}
    missing = {name for name, parameter in names if id(parameter) not in found}
    if missing:
        raise InvalidInput(
            "the graph lacks weights of its network", case=folder.name, got=sorted(missing)[0]
        )
    served.load_state_dict(weights, strict=False)
    return served.network.eval(), config


def measure_parity(
    network: nn.Module,
    config: TrainingConfig,
    folder: Path,
    windows: Sequence[NDArray[np.float32]],
) -> Parity:
    """Compare an exported model with the network it came from, window by window and as one batch.

    Args:
        windows: HU ``[z, y, x]``, of the model's patch.

    Raises:
        InvalidInput: the graph differs by more than `PROBABILITY_TOLERANCE` or `BYTE_TOLERANCE`.
    """
    served = ServedNetwork(network, config.hu_window).eval()
    batch = np.stack(windows)[:, None]
    with torch.no_grad():
        expected = served.probabilities(torch.from_numpy(batch)).numpy()
    before_rounding, rounded = _run_both(folder / GRAPH_FILE, batch)
    parity = Parity(
        probability=float(np.abs(before_rounding - expected).max()),
        byte=int(np.abs(rounded.astype(int) - np.rint(expected * 255.0).astype(int)).max()),
    )
    if parity.probability > PROBABILITY_TOLERANCE or parity.byte > BYTE_TOLERANCE:
        raise InvalidInput(
            "the exported graph differs from the network",
            case=config.name,
            expected=f"at most {PROBABILITY_TOLERANCE} and {BYTE_TOLERANCE} step of 255",
            got=parity,
        )
    return parity


def _run_both(
    path: Path, batch: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Probabilities and bytes of an exported graph, by ONNX Runtime."""
    model = onnx.load_model(path)
    sigmoid = next(node for node in reversed(model.graph.node) if node.op_type == "Sigmoid")
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(sigmoid.output[0], onnx.TensorProto.FLOAT, None)
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    bytes_, probabilities = session.run([OUTPUT_NAME, sigmoid.output[0]], {INPUT_NAME: batch})
    return probabilities, bytes_


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, all or nothing."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}-", delete=False
    ) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    # A temporary file is private; a model is read by whoever serves it.
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
