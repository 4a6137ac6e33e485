"""Types and shapes of the values of an ONNX graph, for one batch size or with its dynamic sizes left open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import onnx
from onnx import TensorProto, helper, shape_inference

from vitslim.errors import InputError
from vitslim.workload.contributed import standard_forms
from vitslim.workload.operator_kinds import DOMAINS

HIDDEN = "vitslim.hidden"
"""Domain of operators whose shapes inference does not know."""
CONSTANT_ELEMENTS_MAX = 1024
"""Constants up to this size keep their values in shape inference: sizes, axes, pads. Larger constants are weights, and
inference gets their type alone."""


@dataclass(frozen=True)
class TensorType:
    """Element type (`onnx.TensorProto.DataType`) and static shape."""

    element: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def infer_types(model: onnx.ModelProto, batch: int) -> dict[str, TensorType]:
    """Return the type of every value, with the first dimension of every input bound to `batch`.

    Outputs of operators of other domains, whose shapes ONNX cannot infer, keep the shapes that the file declares.
    Values of unknown shape are left out. Raises InputError when the inputs do not accept the batch size, or when the
    shapes in the graph contradict each other.
    """
    graph = model.graph
    inputs = [_bind(value, batch) for value in _inputs(graph)]
    outputs = [_without_shape(value) for value in graph.output]
    light = _without_weights(model, inputs, outputs, _declared(graph, batch))
    _check_sliced_sizes(light)
    try:
        inferred = shape_inference.infer_shapes(light, strict_mode=True, data_prop=True).graph
    except shape_inference.InferenceError as error:
        raise InputError(f"the shapes in the graph contradict each other: {_first_line(error)}",
                         "check the file with onnx.checker") from error  # fmt: skip
    return _constants(graph) | _static([*inferred.input, *inferred.value_info, *inferred.output])


def infer_open_types(model: onnx.ModelProto) -> dict[str, TensorType]:
    """Return the type of every value that has one; the shape is empty where a dimension is dynamic or unknown.

    Where the shapes in the graph contradict each other, only its constants, inputs and outputs have a type.
    """
    graph = model.graph
    light = _without_weights(model, _inputs(graph), graph.output)
    _check_sliced_sizes(light)
    try:
        inferred = shape_inference.infer_shapes(light, data_prop=True).graph
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = light.graph
    values = (*graph.value_info, *inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: _open(value) for value in values if value.type.tensor_type.elem_type} | _constants(graph)


def _check_sliced_sizes(light: onnx.ModelProto) -> None:
    """Raise InputError if a Slice reads a dimension below one: inference of its shape would end the process.

    The sizes before the first Slice are inferred with all Slice operators as unknown ones.
    """
    sliced = [node for node in light.graph.node if node.op_type == "Slice"]
    if not sliced:
        return
    hidden = onnx.ModelProto()
    hidden.CopyFrom(light)
    hidden.opset_import.add(domain=HIDDEN, version=1)
    for node in hidden.graph.node:
        node.domain = HIDDEN if node.op_type == "Slice" else node.domain
    try:
        inferred = shape_inference.infer_shapes(hidden, data_prop=True).graph
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        return  # the inference of the whole graph fails too, and says why
    read = {node.input[0] for node in sliced if node.input}
    for value in (*inferred.input, *inferred.value_info):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
        if value.name in read and any(size < 1 for size in sizes):
            raise InputError(f"'{value.name}' has an impossible shape: {sizes}", "check the file with onnx.checker")


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def _constants(graph: onnx.GraphProto) -> dict[str, TensorType]:
    return {t.name: TensorType(t.data_type, tuple(t.dims)) for t in graph.initializer}


def _without_weights(
    model: onnx.ModelProto, inputs: Iterable[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto],
    declared: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:  # fmt: skip
    """Return the model with inputs in the place of its weights, so that inference copies no large constant."""
    graph = model.graph
    small = [tensor for tensor in graph.initializer if prod(tensor.dims) <= CONSTANT_ELEMENTS_MAX]
    large = [tensor for tensor in graph.initializer if prod(tensor.dims) > CONSTANT_ELEMENTS_MAX]
    stand_ins = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in large]
    light = helper.make_graph(
        list(standard_forms(graph.node)), "types", [*inputs, *stand_ins], outputs, small, value_info=declared
    )
    return helper.make_model(light, opset_imports=model.opset_import, ir_version=model.ir_version)


def _declared(graph: onnx.GraphProto, batch: int) -> list[onnx.ValueInfoProto]:
    """Return the declared types of outputs of operators of other domains, with the batch bound."""
    foreign = {name for node in graph.node if node.domain not in DOMAINS for name in node.output}
    symbols = {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim[:1]} - {""}
    bound = []
    for value in graph.value_info:
        if value.name in foreign:
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(value)
            for dim in copy.type.tensor_type.shape.dim:
                if dim.dim_param in symbols:
                    dim.dim_value = batch
            bound.append(copy)
    return bound


def _bind(value: onnx.ValueInfoProto, batch: int) -> onnx.ValueInfoProto:
    bound = onnx.ValueInfoProto()
    bound.CopyFrom(value)
    tensor = bound.type.tensor_type
    if not tensor.HasField("shape"):
        raise InputError(f"input '{value.name}' has no shape", "export the model for a fixed image size")
    dims = tensor.shape.dim
    if not dims:
        return bound
    if dims[0].HasField("dim_value") and dims[0].dim_value != batch:
        raise InputError(f"input '{value.name}' has a fixed batch size of {dims[0].dim_value}, got {batch}",
                         "export the model with a dynamic batch, or use that batch size")  # fmt: skip
    dims[0].dim_value = batch
    if any(dim.HasField("dim_value") and dim.dim_value < 1 for dim in dims):
        shape = " x ".join(str(dim.dim_value) for dim in dims)
        raise InputError(f"every dimension of input '{value.name}' must be positive, got {shape}",
                         "export the model for a fixed image size")  # fmt: skip
    if any(not dim.HasField("dim_value") for dim in dims):
        raise InputError(f"only the batch of input '{value.name}' may be dynamic, but other dimensions are too",
                         "export the model for a fixed image size")  # fmt: skip
    return bound


def _without_shape(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Return an output without its symbolic shape, which would contradict the bound batch."""
    return helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None)


def _static(values: Iterable[onnx.ValueInfoProto]) -> dict[str, TensorType]:
    types = {}
    for value in values:
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        known = tensor.elem_type != TensorProto.UNDEFINED and tensor.HasField("shape")
        if known and all(dim.HasField("dim_value") for dim in dims):
            types[value.name] = TensorType(tensor.elem_type, tuple(dim.dim_value for dim in dims))
    return types


def _open(value: onnx.ValueInfoProto) -> TensorType:
    dims = value.type.tensor_type.shape.dim
    is_static = all(dim.HasField("dim_value") for dim in dims)
    return TensorType(value.type.tensor_type.elem_type, tuple(dim.dim_value for dim in dims) if is_static else ())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
