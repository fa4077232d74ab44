"""Any ONNX graph of a segmentation network, wrapped into our interface.

    input: image            # [batch, 1, x, y, z] float32
    output: logits          # [batch, class, x, y, z] float32
    axes: xyz
    classes: [null, liver, spleen]
    activation: softmax
    spacing_mm: [1.5, 1.5, 1.5]
    patch: [96, 96, 96]

Clipping, scaling, turning, activation, the choice of channels and the rounding to bytes become
nodes around it; the graph itself is not touched. One that has our interface already is taken as it
is described.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnxruntime
from atlas_core.errors import CorruptFile, InvalidInput
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from atlas_core.organs import OrganScheme
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydantic import Field

from atlas_models.exporting import set_metadata, write_graph
from atlas_models.importing.imported_model import ImportedModel
from atlas_models.importing.model_description import ModelDescription, read_description

OLDEST_OPSET = 13
"""From which on the operators that are added mean what they mean today."""

STANDARD_DOMAINS = ("", "ai.onnx")
"""Operators that ONNX Runtime, OpenVINO and TensorRT share."""

PREFIX = "imported/"

NOT_TRAINABLE = "no: an ONNX graph does not hold what training needs"


class GraphDescription(ModelDescription):
    """A graph with one input and the output that matters."""

    input: str = Field(description="Name of the input, float32 [batch, 1, spatial axes].")
    output: str = Field(description="Name of the output, float32 [batch, class, spatial axes].")
    architecture: str = Field(default="onnx", min_length=1, description="For people.")


def import_onnx(
    graph: Path,
    description_file: Path,
    folder: Path,
    *,
    name: str,
    version: int = 0,
    scheme: OrganScheme,
    serving: Mapping[str, Any] = MappingProxyType({}),
) -> ImportedModel:
    """Write an ONNX file as an exported model in `folder`.

    Args:
        serving: further fields of its spec, such as its overlap.

    Raises:
        ConfigurationError: the description cannot be read.
        CorruptFile: the file is no valid ONNX graph.
        InvalidInput: inputs, outputs or operators that cannot be served, another number of classes
            than described, NaN in the answer.
    """
    description = read_description(description_file, GraphDescription)
    groups = description.groups(scheme, description_file.name)
    spec = description.spec(name, version, description.architecture, tuple(groups), serving)
    model = _load(graph)
    _require_as_described(model, description, graph.name)
    _Wrapper(model, description).wrap(list(groups.values()), spec)
    set_metadata(model, spec, {})
    _require_answer(model, spec, graph.name)
    spec = write_graph(model, spec, folder)
    return ImportedModel(spec, NOT_TRAINABLE, description.left_out(scheme))


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model(path, load_external_data=False)
        outside = [t.name for t in model.graph.initializer if t.data_location == t.EXTERNAL]
        if outside:
            raise InvalidInput(
                "the graph keeps weights in other files",
                case=path.name,
                got=outside[0],
                remedy="save it as one file",
            )
        onnx.checker.check_model(model, full_check=True)
    except InvalidInput:
        raise
    except Exception as error:  # protobuf, checker and shape inference each have their own
        raise CorruptFile(
            "the file is no valid ONNX graph",
            case=path.name,
            got=(str(error).splitlines() or [type(error).__name__])[0][:200],
        ) from None
    _require_standard(model, path.name)
    return model


def _require_standard(model: onnx.ModelProto, case: str) -> None:
    for node in model.graph.node:
        if node.domain not in STANDARD_DOMAINS:
            raise InvalidInput(
                "the graph uses operators that only one runtime has",
                case=case,
                expected="standard ONNX operators",
                got=f"{node.domain}.{node.op_type}",
            )
    opset = max((o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS), default=0)
    if opset < OLDEST_OPSET:
        raise InvalidInput(
            "the graph is of an old opset",
            case=case,
            expected=f"at least {OLDEST_OPSET}",
            got=opset,
            remedy="export it again, or convert it by onnx.version_converter",
        )


def _require_as_described(model: onnx.ModelProto, description: GraphDescription, case: str) -> None:
    """One float input of the described shape with any batch size, and the described output."""
    initialised = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialised]
    if [value.name for value in inputs] != [description.input]:
        raise InvalidInput(
            "the graph has other inputs than described",
            case=case,
            expected=description.input,
            got=", ".join(value.name for value in inputs),
        )
    outputs = {value.name: value for value in model.graph.output}
    if description.output not in outputs:
        raise InvalidInput(
            "the graph has no such output",
            case=case,
            expected=", ".join(outputs),
            got=description.output,
        )
    x, y, z = description.patch
    spatial = (x, y, z) if description.axes == "xyz" else (z, y, x)
    _require_shape(inputs[0], (1, *spatial), case)
    _require_shape(outputs[description.output], (len(description.classes), *spatial), case)


def _require_shape(value: onnx.ValueInfoProto, expected: Sequence[int], case: str) -> None:
    """A float32 tensor of any batch; lengths that the graph leaves open are as expected."""
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise InvalidInput(
            f"{value.name} is of another type",
            case=case,
            expected="float32",
            got=TensorProto.DataType.Name(tensor.elem_type),
        )
    lengths = [dim.dim_value or None for dim in tensor.shape.dim]
    fits = len(lengths) == 1 + len(expected) and all(
        length in (None, wanted) for length, wanted in zip(lengths[1:], expected, strict=True)
    )
    if not fits or lengths[0] is not None:
        raise InvalidInput(
            f"{value.name} has another shape than described",
            case=case,
            expected=("any batch", *expected),
            got=tuple("any" if length is None else length for length in lengths),
            remedy="export it with a dynamic batch axis" if fits else "mend the description",
        )


class _Wrapper:
    """Adds nodes in front of a graph and behind it, in place."""

    def __init__(self, model: onnx.ModelProto, description: GraphDescription) -> None:
        onnx.compose.add_prefix(model, PREFIX, inplace=True)
        self.graph = model.graph
        self.description = description
        self.before: list[onnx.NodeProto] = []
        self.behind: list[onnx.NodeProto] = []
        self._count = 0

    def wrap(self, groups: Sequence[tuple[int, ...]], spec: ModelSpec) -> None:
        own_input, own_output = (
            f"{PREFIX}{self.description.input}",
            f"{PREFIX}{self.description.output}",
        )
        self._input_transform(own_input)
        self._head(own_output, groups)
        nodes = [*self.before, *self.graph.node, *self.behind]
        del self.graph.node[:], self.graph.input[:], self.graph.output[:]
        del self.graph.value_info[:]  # of the graph alone; shapes follow from its ends
        self.graph.node.extend(nodes)
        x, y, z = spec.patch
        self.graph.input.append(_tensor(INPUT_NAME, TensorProto.FLOAT, 1, z, y, x))
        self.graph.output.append(_tensor(OUTPUT_NAME, TensorProto.UINT8, len(spec.organs), z, y, x))

    def _input_transform(self, own_input: str) -> None:
        low, high, shift, scale = self.description.intensities
        name = self._flips(self.before, INPUT_NAME)
        name = self._node(self.before, "Clip", name, self._number(low), self._number(high))
        name = self._node(self.before, "Sub", name, self._number(shift))
        name = self._node(self.before, "Div", name, self._number(scale))
        self.before.append(
            helper.make_node("Transpose", [name], [own_input], perm=self._permutation())
        )

    def _head(self, own_output: str, groups: Sequence[tuple[int, ...]]) -> None:
        # Orders of three axes that we know are their own reverse.
        name = self._node(self.behind, "Transpose", own_output, perm=self._permutation())
        name = self._flips(self.behind, name)
        if self.description.activation == "softmax":
            name = self._node(self.behind, "Softmax", name, axis=1)
        elif self.description.activation == "sigmoid":
            name = self._node(self.behind, "Sigmoid", name)
        organs = [self._joined(name, group) for group in groups]
        name = self._node(self.behind, "Concat", *organs, axis=1)
        name = self._node(self.behind, "Clip", name, self._number(0.0), self._number(1.0))
        name = self._node(self.behind, "Mul", name, self._number(255.0))
        name = self._node(self.behind, "Round", name)
        self.behind.append(helper.make_node("Cast", [name], [OUTPUT_NAME], to=TensorProto.UINT8))

    def _joined(self, name: str, group: tuple[int, ...]) -> str:
        channels = [
            self._node(self.behind, "Gather", name, self._integers([channel]), axis=1)
            for channel in group
        ]
        if len(channels) == 1:
            return channels[0]
        # Classes of a softmax exclude each other; sigmoids may both claim a voxel.
        op = "Sum" if self.description.activation == "softmax" else "Max"
        return self._node(self.behind, op, *channels)

    def _flips(self, nodes: list[onnx.NodeProto], name: str) -> str:
        for axis in self.description.flipped:
            name = self._node(
                nodes,
                "Slice",
                name,
                self._integers([-1]),
                self._integers([np.iinfo(np.int64).min]),
                self._integers([2 + axis]),
                self._integers([-1]),
            )
        return name

    def _permutation(self) -> list[int]:
        return [0, 1, *(2 + axis for axis in self.description.network_axes)]

    def _node(
        self, nodes: list[onnx.NodeProto], op: str, *inputs: str, **attributes: object
    ) -> str:
        output = self._fresh(op.lower())
        nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def _number(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _integers(self, values: Sequence[int]) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, value: NDArray[Any]) -> str:
        name = self._fresh("constant")
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"wrap/{kind}{self._count}"


def _tensor(name: str, kind: int, *lengths: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", *lengths])


def _require_answer(model: onnx.ModelProto, spec: ModelSpec, case: str) -> None:
    """Runs the wrapped graph on two windows: shows what no shape can show."""
    tried = onnx.ModelProto()
    tried.CopyFrom(model)
    # As bytes, NaN would be no organ: seen before it is clipped and rounded.
    (soft_float,) = [node for node in tried.graph.node if node.op_type == "Clip"][-1].input[:1]
    tried.graph.output.append(helper.make_tensor_value_info(soft_float, TensorProto.FLOAT, None))
    x, y, z = spec.patch
    noise = np.random.default_rng(0).normal(40.0, 200.0, (2, 1, z, y, x)).astype(np.float32)
    try:
        session = onnxruntime.InferenceSession(
            tried.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        soft, own = session.run([OUTPUT_NAME, soft_float], {INPUT_NAME: noise})
    except Exception as error:  # ONNX Runtime raises classes of its own, made at run time
        raise InvalidInput(
            "the graph does not run on two windows at once",
            case=case,
            got=(str(error).splitlines() or [type(error).__name__])[0][:200],
        ) from None
    if soft.shape != (2, len(spec.organs), z, y, x):
        raise InvalidInput(
            "the graph answers in another shape than described",
            case=case,
            expected=(2, len(spec.organs), z, y, x),
            got=soft.shape,
        )
    if np.isnan(own).any():
        raise InvalidInput(
            "the graph answers NaN",
            case=case,
            expected="numbers on CTs of the described window",
            got=f"{np.count_nonzero(np.isnan(own))} of {own.size} are NaN",
            remedy="look into its weights and the described hu_window, shift and scale",
        )
