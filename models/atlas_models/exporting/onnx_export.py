"""From a network to the folder that is served: `model.onnx`, `model.json`, `weights.safetensors`.

The graph holds everything between Hounsfield units and bytes, so that a runtime (ONNX Runtime,
OpenVINO, TensorRT) takes float32 HU and returns uint8; see `atlas_core.model_spec`. The
weights beside it are the network's own tensors under its own names: exporters fold and rename them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from atlas_core.atomic_writes import move_file, move_folder, replace_file, scratch_folder
from atlas_core.errors import InvalidInput
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from numpy.typing import NDArray
from torch import nn

from atlas_models.config import TrainingConfig
from atlas_models.exported_network import ExportedNetwork
from atlas_models.exporting.parity import Parity, measure
from atlas_models.exporting.weights import CONFIG_KEY, WEIGHTS_FILE, network_from, write_weights
from atlas_models.networks import build_network
from atlas_models.serving import GRAPH_FILE, SPEC_FILE, read_spec

OPSET = 20
"""The newest opset that ONNX Runtime, OpenVINO and TensorRT can all read."""

MAX_BATCH = 64
"""Most windows in one request, which the exporter must know; servers allow far fewer."""

RESTORED_SUFFIX = ".float32"
"""Name of a weight behind its cast from float16."""

SPEC_KEY = "atlasloop.spec"
"""Metadata of the ONNX file: its ModelSpec, so that the file explains itself without its folder."""

NO_SHA256 = "0" * 64
"""In the spec of a graph that is not written yet."""


def export_model(
    network: nn.Module, config: TrainingConfig, folder: Path, *, version: int = 0
) -> ModelSpec:
    """Write a network of ours as an exported model in `folder`, with its weights beside it.

    Its weights are rounded to float16, see `round_weights`.

    Returns:
        The spec, with the checksum of the ONNX file.

    Raises:
        InvalidInput: the network holds NaN or infinite weights.
        onnx.checker.ValidationError: the graph is not valid ONNX.
    """
    round_weights(network)
    model = build_graph(wrap_network(network, config), spec_of(config, version), _note(config))
    store_as_float16(model)
    return write_graph(model, spec_of(config, version), folder, weights_of=(network, config))


def _note(config: TrainingConfig) -> dict[str, str]:
    return {CONFIG_KEY: config.model_dump_json()}


def wrap_network(network: nn.Module, config: TrainingConfig) -> ExportedNetwork:
    """A network of ours with all that its graph holds around it."""
    return ExportedNetwork(network, config.hu_window).eval()


def build_graph(
    served: ExportedNetwork, spec: ModelSpec, notes: Mapping[str, str]
) -> onnx.ModelProto:
    """The ONNX graph of a network with our interface, weights in float32.

    Args:
        spec: of the model; its checksum does not count.
        notes: more metadata of the graph.

    Raises:
        InvalidInput: a weight is NaN or infinite.
    """
    for key, tensor in served.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInput(
                f"weights of model {spec.name} are not finite",
                expected="numbers",
                got=key,
                remedy="the training diverged: train again with a lower learning rate",
            )
    model = _to_onnx(served.eval(), spec)
    set_metadata(model, spec, notes)
    return model


def write_graph(
    model: onnx.ModelProto,
    spec: ModelSpec,
    folder: Path,
    *,
    weights_of: tuple[nn.Module, TrainingConfig] | None = None,
) -> ModelSpec:
    """Check a graph and write ``model.onnx``, ``model.json`` and the weights of a network of ours.

    A folder that is new appears in one step; in one that is there, ``model.json`` comes last, and
    until then its checksum shows that the graph is another one.

    Returns:
        `spec` with the checksum of the ONNX file.

    Raises:
        InvalidInput: a weight does not fit float16.
        onnx.checker.ValidationError: the graph is not valid ONNX.
    """
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString(deterministic=True)
    spec = spec.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    with scratch_folder(folder.parent, prefix=f".{folder.name}-") as scratch:
        fresh = scratch / folder.name
        fresh.mkdir()
        if weights_of is not None:
            write_weights(*weights_of, fresh)
        replace_file(fresh / GRAPH_FILE, data)
        replace_file(fresh / SPEC_FILE, (spec.model_dump_json(indent=1) + "\n").encode())
        _move_in(fresh, folder)
    return spec


def _move_in(fresh: Path, folder: Path) -> None:
    if not folder.exists():
        move_folder(fresh, folder)
        return
    for name in (WEIGHTS_FILE, GRAPH_FILE, SPEC_FILE):
        if (fresh / name).exists():
            move_file(fresh / name, folder / name)


def spec_of(config: TrainingConfig, version: int = 0) -> ModelSpec:
    """What a network of this configuration is served as; its graph is not there yet."""
    return ModelSpec(
        name=config.name,
        version=version,
        architecture=config.architecture,
        organs=config.organs,
        spacing_mm=config.spacing_mm,
        patch=config.patch,
        hu_window=config.hu_window,
        activation=config.activation,
        sha256=NO_SHA256,
        **{"padding_hu": config.padding_hu}
        | ({} if config.foreign is None else config.foreign.serving),
    )


def round_weights(network: nn.Module) -> None:
    """Round the weights of `network` to float16 in place, so that it is what its export stores.

    Half the bytes on disk and over the wire; arithmetic stays float32 everywhere.
    """
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())


def _to_onnx(served: ExportedNetwork, spec: ModelSpec) -> onnx.ModelProto:
    x, y, z = spec.patch
    # Two windows: the exporter takes an axis of length one for a constant.
    example = torch.zeros(2, 1, z, y, x)
    with quiet_exporter():
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
def quiet_exporter() -> Iterator[None]:
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


def store_as_float16(model: onnx.ModelProto) -> None:
    """Store float32 weights as float16 under their own names, each with a cast back behind it.

    Only such that float16 holds exactly, as it does all of a network after `round_weights`: what
    the exporter has computed of them (a batch norm folded into the convolution before it) would be
    rounded again, and the graph would be another network.
    """
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim == 0:
            continue
        with np.errstate(over="ignore"):  # what is too large is not held exactly
            halved = values.astype(np.float16)
        if not np.array_equal(halved, values):
            continue
        restored = f"{tensor.name}{RESTORED_SUFFIX}"
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[place] = restored
        casts.append(
            onnx.helper.make_node("Cast", [tensor.name], [restored], to=onnx.TensorProto.FLOAT)
        )
        tensor.CopyFrom(onnx.numpy_helper.from_array(halved, tensor.name))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    halved_names = {cast.input[0] for cast in casts}
    remaining = [value for value in graph.value_info if value.name not in halved_names]
    del graph.value_info[:]
    graph.value_info.extend(remaining)


def set_metadata(model: onnx.ModelProto, spec: ModelSpec, notes: Mapping[str, str]) -> None:
    """Put spec and notes into the file; drop what the exporter notes of source lines."""
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
            **notes,
        },
    )


def load_network(folder: Path) -> tuple[nn.Module, TrainingConfig]:
    """The network of an exported model with its weights and configuration, to train it further.

    Raises:
        InvalidInput: it is no network of ours, or its weights do not fit its configuration.
        NotFound, CorruptFile: see `read_spec` and `weights.read_weights`.
    """
    read_spec(folder)
    if not (folder / WEIGHTS_FILE).exists():
        return _load_from_graph(folder)
    network, config = network_from(folder)
    return network.eval(), config


def _load_from_graph(folder: Path) -> tuple[nn.Module, TrainingConfig]:
    """As `load_network`, of an export without weights beside it.

    Only where the exporter keeps every weight as it is (`nnunet`): it folds the slopes of a U-Net's
    PReLU and the transposed matrices of Swin UNETR into other constants.
    """
    model = onnx.load_model(folder / GRAPH_FILE, load_external_data=False)
    props = {prop.key: prop.value for prop in model.metadata_props}
    if CONFIG_KEY not in props:
        raise InvalidInput(
            "the model does not say how it was trained",
            case=folder.name,
            expected=f"metadata {CONFIG_KEY}",
            remedy="an imported model is served as it is; train one of ours to go on",
        )
    config = TrainingConfig.model_validate_json(props[CONFIG_KEY])
    served = ExportedNetwork(build_network(config), config.hu_window)
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
            f"there is no {WEIGHTS_FILE} and the graph lacks weights of its network",
            case=folder.name,
            got=sorted(missing)[0],
        )
    served.load_state_dict(weights, strict=False)
    return served.network.eval(), config


def measure_parity(
    network: nn.Module,
    config: TrainingConfig,
    folder: Path,
    windows: Sequence[NDArray[np.float32]],
) -> Parity:
    """Compare the export of a network of ours with it; see `parity.measure`."""
    return measure(wrap_network(network, config), folder, windows)
