"""Types of the values of any ONNX graph, as far as they can be told without binding its dynamic sizes."""

from __future__ import annotations

from math import prod

import onnx
from onnx import helper, shape_inference

from vitslim.workload.shapes import CONSTANT_ELEMENTS_MAX, TensorType


def declared_types(model: onnx.ModelProto) -> dict[str, TensorType]:
    """Type of every value that has one; the shape is empty where a dimension is dynamic or unknown.

    Where the shapes of the graph contradict each other, only its constants and inputs have a type.
    """
    graph = model.graph
    small = [tensor for tensor in graph.initializer if prod(tensor.dims) <= CONSTANT_ELEMENTS_MAX]
    large = [tensor for tensor in graph.initializer if prod(tensor.dims) > CONSTANT_ELEMENTS_MAX]
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    stand_ins = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in large]
    light = helper.make_graph(graph.node, "types", [*inputs, *stand_ins], graph.output, small)
    shell = helper.make_model(light, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        inferred = shape_inference.infer_shapes(shell, data_prop=True).graph
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = light
    values = (*graph.value_info, *inferred.input, *inferred.value_info, *inferred.output)
    types = {value.name: _type(value) for value in values if value.type.tensor_type.elem_type}
    return types | {t.name: TensorType(t.data_type, tuple(t.dims)) for t in graph.initializer}


def _type(value: onnx.ValueInfoProto) -> TensorType:
    dims = value.type.tensor_type.shape.dim
    static = all(dim.HasField("dim_value") for dim in dims)
    return TensorType(value.type.tensor_type.elem_type, tuple(dim.dim_value for dim in dims) if static else ())
