"""Static shapes of every value of an ONNX graph, for one batch size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import onnx
from onnx import TensorProto, helper, shape_inference

from vitslim.errors import InputError
from vitslim.workload.kinds import DOMAINS

CONSTANT_ELEMENTS_MAX = 1024
"""Constants up to this size keep their values in shape inference: sizes, axes, pads. Larger ones are weights."""


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
    """Type of every value, with the first dimension of every input bound to `batch`.

    Where ONNX cannot infer a shape behind an operator of another domain, the file's own word is taken. Values of
    unknown shape are left out. Raises InputError when the inputs do not take the batch size, or when the graph
    contradicts itself.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [_bind(value, batch) for value in graph.input if value.name not in constants]
    weights = [tensor for tensor in graph.initializer if prod(tensor.dims) > CONSTANT_ELEMENTS_MAX]
    small = [tensor for tensor in graph.initializer if prod(tensor.dims) <= CONSTANT_ELEMENTS_MAX]
    stand_ins = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in weights]
    outputs = [_without_shape(value) for value in graph.output]
    light = helper.make_graph(
        graph.node, "shapes", [*inputs, *stand_ins], outputs, small, value_info=_declared(graph, batch)
    )
    shell = helper.make_model(light, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        inferred = shape_inference.infer_shapes(shell, strict_mode=True, data_prop=True).graph
    except shape_inference.InferenceError as error:
        raise InputError(f"the shapes in the graph do not fit together: {_first_line(error)}",
                         "check the file with onnx.checker") from error  # fmt: skip
    types = {t.name: TensorType(t.data_type, tuple(t.dims)) for t in graph.initializer}
    return types | _static([*inferred.input, *inferred.value_info, *inferred.output])


def _declared(graph: onnx.GraphProto, batch: int) -> list[onnx.ValueInfoProto]:
    """What the file says of values that operators of other domains compute, with the batch bound."""
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
        raise InputError(f"input '{value.name}' has no shape", "export the model with a fixed image size")
    dims = tensor.shape.dim
    if not dims:
        return bound
    if dims[0].HasField("dim_value") and dims[0].dim_value != batch:
        raise InputError(f"input '{value.name}' has a fixed batch size of {dims[0].dim_value}, not {batch}",
                         "export the model with a dynamic batch, or ask for that batch size")  # fmt: skip
    dims[0].dim_value = batch
    if any(dim.HasField("dim_value") and dim.dim_value < 1 for dim in dims):
        shape = " x ".join(str(dim.dim_value) for dim in dims)
        raise InputError(f"input '{value.name}' has a dimension that is not positive: {shape}",
                         "export the model with a fixed image size")  # fmt: skip
    if any(not dim.HasField("dim_value") for dim in dims):
        raise InputError(f"input '{value.name}' has more dynamic dimensions than the batch",
                         "export the model with a fixed image size")  # fmt: skip
    return bound


def _without_shape(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """The exporter's symbolic output shape would contradict the bound batch."""
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
