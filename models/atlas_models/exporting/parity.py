"""Measures whether an exported graph computes what its network computes.

Two figures per graph. The *probability* compares the float tensor before rounding, with every
instance norm of the graph spelled out as chained means: ONNX Runtime's own kernel sums the voxels
of a channel one by one in float32 and is off by up to 4e-4, which says nothing about the export.
The *byte* compares the output of the graph as it is served. See docs/decisions/0015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from atlas_core.errors import InvalidInput
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from atlas_models.exported_network import ExportedNetwork
from atlas_models.serving import GRAPH_FILE

PROBABILITY_TOLERANCE = 1e-4
"""Between PyTorch and the graph's arithmetic in float32; measured: 1e-5 at most."""

BYTE_TOLERANCE = 1
"""A probability on the border between two bytes may round either way."""

_SPATIAL_AXES = (4, 3, 2)


@dataclass(frozen=True)
class Parity:
    """Largest difference between PyTorch and the exported graph on some windows."""

    probability: float
    byte: int


def measure(
    served: ExportedNetwork, folder: Path, windows: Sequence[NDArray[np.float32]]
) -> Parity:
    """Compare an exported model with the network it came from, all windows as one batch.

    Args:
        windows: HU ``[z, y, x]``, of the model's patch.

    Raises:
        InvalidInput: the graph differs by more than `PROBABILITY_TOLERANCE` or `BYTE_TOLERANCE`.
    """
    batch = np.stack(windows)[:, None]
    with torch.no_grad():
        expected = served.eval().probabilities(torch.from_numpy(batch)).numpy()
    probabilities, rounded = run_graph(folder / GRAPH_FILE, batch)
    parity = Parity(
        probability=float(np.abs(probabilities - expected).max()),
        byte=int(np.abs(rounded.astype(int) - np.rint(expected * 255.0).astype(int)).max()),
    )
    # Not "larger than": a graph that yields NaN must not pass.
    if not (parity.probability <= PROBABILITY_TOLERANCE and parity.byte <= BYTE_TOLERANCE):
        raise InvalidInput(
            "the exported graph differs from the network",
            case=folder.name,
            expected=f"at most {PROBABILITY_TOLERANCE} and {BYTE_TOLERANCE} step of 255",
            got=parity,
        )
    return parity


def run_graph(
    path: Path, batch: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Probabilities and bytes of an exported graph by ONNX Runtime.

    Args:
        batch: HU ``[batch, 1, z, y, x]``.

    Returns:
        probabilities ``[batch, organ, z, y, x]`` with norms spelled out, bytes of the graph as is.
    """
    model = onnx.load_model(path)
    (bytes_,) = _session(model).run([OUTPUT_NAME], {INPUT_NAME: batch})
    before_rounding = probability_tensor(model)
    _spell_out_norms(model)
    model.graph.output.append(
        helper.make_tensor_value_info(before_rounding, onnx.TensorProto.FLOAT, None)
    )
    (probabilities,) = _session(model).run([before_rounding], {INPUT_NAME: batch})
    return probabilities, bytes_


def probability_tensor(model: onnx.ModelProto) -> str:
    """Name of the tensor that holds the probabilities of an exported graph.

    Raises:
        InvalidInput: the graph does not end in round(255 · p).
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {
        name for node in model.graph.node if node.op_type == "Constant" for name in node.output
    }
    name = OUTPUT_NAME
    for op in ("Cast", "Round", "Mul"):
        node = makers.get(name)
        inputs = (
            [] if node is None else [one for one in node.input if not _constant(one, constants)]
        )
        if node is None or node.op_type != op or len(inputs) != 1:
            raise InvalidInput(
                "the graph does not end in a rounded probability",
                expected="Mul by 255, Round, Cast to uint8",
                got=None if node is None else node.op_type,
            )
        name = inputs[0]
    return name


def _constant(name: str, constants: set[str]) -> bool:
    # A constant may lie behind its cast from float16; see `export.store_as_float16`.
    return name in constants or name.removesuffix(".float32") in constants


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # the spelled-out graph leaves a few initialisers unused
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _spell_out_norms(model: onnx.ModelProto) -> None:
    """Replace every InstanceNormalization by its definition, means taken axis by axis.

    64 numbers are added at a time instead of 64³, so that float32 is enough.
    """
    graph = model.graph
    axes = {axis: f"spelled.axis{axis}" for axis in _SPATIAL_AXES}
    for axis, name in axes.items():
        graph.initializer.append(numpy_helper.from_array(np.array([axis], np.int64), name))
    graph.initializer.append(
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "spelled.trailing")
    )
    flat = _flat_tensors(model)
    nodes: list[onnx.NodeProto] = []
    for count, node in enumerate(graph.node):
        if node.op_type == "InstanceNormalization" and node.input[0] in flat:
            nodes += _flat_norm_nodes(graph, node, f"spelled.{count}")
        elif node.op_type == "InstanceNormalization":
            nodes += _norm_nodes(graph, node, f"spelled.{count}", axes)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _flat_tensors(model: onnx.ModelProto) -> set[str]:
    """Tensors ``[batch, group, rest]``, into which the exporter reshapes for a group norm."""
    shapes = onnx.shape_inference.infer_shapes(model).graph.value_info
    return {value.name for value in shapes if len(value.type.tensor_type.shape.dim) == 3}


def _flat_norm_nodes(
    graph: onnx.GraphProto, norm: onnx.NodeProto, name: str
) -> list[onnx.NodeProto]:
    """As `_norm_nodes`, of ``[batch, group, rest]``: one long axis, so its means are in float64."""
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    for constant, value in {
        "epsilon": np.float64(epsilon), "axis": np.array([2]), "trailing": np.array([1])
    }.items():  # fmt: skip
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{name}.{constant}"))
    node, axis, trailing = helper.make_node, f"{name}.axis", f"{name}.trailing"
    wide = [f"{name}.{part}64" for part in ("x", "scale", "bias")]
    return [
        *(
            node("Cast", [given], [cast], to=onnx.TensorProto.DOUBLE)
            for given, cast in zip(norm.input, wide, strict=True)
        ),
        node("ReduceMean", [wide[0], axis], [f"{name}.mean"], keepdims=1),
        node("Sub", [wide[0], f"{name}.mean"], [f"{name}.centred"]),
        node("Mul", [f"{name}.centred", f"{name}.centred"], [f"{name}.squared"]),
        node("ReduceMean", [f"{name}.squared", axis], [f"{name}.variance"], keepdims=1),
        node("Add", [f"{name}.variance", f"{name}.epsilon"], [f"{name}.positive"]),
        node("Sqrt", [f"{name}.positive"], [f"{name}.deviation"]),
        node("Div", [f"{name}.centred", f"{name}.deviation"], [f"{name}.normal"]),
        node("Unsqueeze", [wide[1], trailing], [f"{name}.scale"]),
        node("Unsqueeze", [wide[2], trailing], [f"{name}.bias"]),
        node("Mul", [f"{name}.normal", f"{name}.scale"], [f"{name}.scaled"]),
        node("Add", [f"{name}.scaled", f"{name}.bias"], [f"{name}.done"]),
        node("Cast", [f"{name}.done"], [norm.output[0]], to=onnx.TensorProto.FLOAT),
    ]


def _norm_nodes(
    graph: onnx.GraphProto, norm: onnx.NodeProto, name: str, axes: dict[int, str]
) -> list[onnx.NodeProto]:
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    graph.initializer.append(numpy_helper.from_array(np.float32(epsilon), f"{name}.epsilon"))
    x, scale, bias = norm.input
    node = helper.make_node
    return [
        *_mean(x, f"{name}.mean", axes),
        node("Sub", [x, f"{name}.mean"], [f"{name}.centred"]),
        node("Mul", [f"{name}.centred", f"{name}.centred"], [f"{name}.squared"]),
        *_mean(f"{name}.squared", f"{name}.variance", axes),
        node("Add", [f"{name}.variance", f"{name}.epsilon"], [f"{name}.positive"]),
        node("Sqrt", [f"{name}.positive"], [f"{name}.deviation"]),
        node("Div", [f"{name}.centred", f"{name}.deviation"], [f"{name}.normal"]),
        node("Unsqueeze", [scale, "spelled.trailing"], [f"{name}.scale"]),
        node("Unsqueeze", [bias, "spelled.trailing"], [f"{name}.bias"]),
        node("Mul", [f"{name}.normal", f"{name}.scale"], [f"{name}.scaled"]),
        node("Add", [f"{name}.scaled", f"{name}.bias"], [norm.output[0]]),
    ]


def _mean(x: str, name: str, axes: dict[int, str]) -> list[onnx.NodeProto]:
    """Mean over the spatial axes, one after the other."""
    names = [x, f"{name}.of1", f"{name}.of2", name]
    return [
        helper.make_node("ReduceMean", [names[step], axis], [names[step + 1]], keepdims=1)
        for step, axis in enumerate(axes.values())
    ]
