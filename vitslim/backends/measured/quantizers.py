"""Quantizers before the matmuls and convolutions of an ONNX file, each as a small model for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from vitslim.workload.contents.file_contents import Layer
from vitslim.workload.contents.weight_matrix import FLOAT_OPERATORS, OPERANDS
from vitslim.workload.onnx_graph import OnnxGraph, attribute
from vitslim.workload.session import Floats, open_session

STATIC = {"QuantizeLinear", "DequantizeLinear", "Clip", "Cast"}
"""Operators of a static activation quantizer."""
DYNAMIC = "DynamicQuantizeLinear"


class Quantizer:
    """Quantizes and dequantizes the operands of one layer with the operators of the file."""

    def __init__(self, model: onnx.ModelProto, graph: OnnxGraph, layer: Layer) -> None:
        self._model, self._graph, self._layer = model, graph, layer
        self._node = next(node for node in graph.nodes if node.name == layer.node)

    def input(self, values: Floats) -> Floats | None:
        """Quantize and dequantize values float32 of any valid input shape; None when the input is not quantized."""
        if self._input_model is None:
            return None
        session, name = self._input_model
        found = session.run(None, {name: values})
        if len(found) == 1:
            return np.asarray(found[0], np.float32)
        integers, scale, zero = (np.asarray(array, np.float32) for array in found)
        return np.asarray((integers - zero) * scale, np.float32)

    @property
    def input_offset(self) -> np.float32:
        """Constant that is subtracted from the input before it is quantized to signed integers; 0 for none."""
        if not self._is_signed:
            return np.float32(0)
        before = self._graph.producers.get(self._input_model[1]) if self._input_model is not None else None
        constant = self._graph.initializers.get(before.input[1]) if before and before.op_type == "Sub" else None
        array = np.zeros(()) if constant is None else onnx.numpy_helper.to_array(constant)
        return np.float32(array.item() if array.size == 1 else 0)

    @property
    def _is_signed(self) -> bool:
        """Whether the input is quantized to signed integers."""
        target = self._graph.producers.get(self._node.input[OPERANDS[self._node.op_type].data])
        zero = self._graph.initializers.get(target.input[2]) if target and len(target.input) > 2 else None
        return zero is not None and zero.data_type in (TensorProto.INT8, TensorProto.INT4)

    def weight(self) -> Floats | None:
        """Return the dequantized weight, float32 (outputs, reduction...); None for operators without a weight scale."""
        operand = OPERANDS[self._node.op_type].weight
        if self._node.op_type not in FLOAT_OPERATORS or not self._layer.quantized:
            return None
        value = self._node.input[operand]
        session = self._session(_subgraph(self._graph, value, ""), "", [value])
        weight = np.asarray(session.run(None, {})[0], np.float32)
        by_output = self._node.op_type.endswith("Conv") or attribute(self._node, "transB", 0) == 1
        return weight if by_output else np.ascontiguousarray(weight.swapaxes(-1, -2))

    @cached_property
    def _input_model(self) -> tuple[Any, str] | None:
        """A session from the float input of the layer to its dequantized input, and the name of the float input."""
        target = self._node.input[OPERANDS[self._node.op_type].data]
        source, quantized = target, ""
        while source in self._graph.producers and self._graph.producers[source].op_type in {*STATIC, DYNAMIC}:
            node = self._graph.producers[source]
            if quantized and node.op_type != "Clip":
                break
            source = node.input[0]
            if quantized or node.op_type == DYNAMIC:
                quantized = node.op_type
                break
            quantized = node.op_type if node.op_type == "QuantizeLinear" else ""
        if not quantized:
            return None
        outputs = list(self._graph.producers[target].output) if quantized == DYNAMIC else [target]
        return self._session(_subgraph(self._graph, target, source), source, outputs), source

    def _session(self, nodes: Sequence[NodeProto], source: str, outputs: Sequence[str]) -> Any:
        computed = {name for node in nodes for name in node.output}
        needed = {name for node in nodes for name in node.input} | set(outputs)
        declared = [helper.make_tensor_value_info(source, TensorProto.FLOAT, None)] if source else []
        graph = helper.make_graph(
            list(nodes), "quantizer", declared, [onnx.ValueInfoProto(name=name) for name in outputs], []
        )
        for name in needed - computed:
            if name in self._graph.initializers:
                graph.initializer.add().CopyFrom(self._graph.initializers[name])
                graph.initializer[-1].name = name
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        return open_session(model.SerializeToString(), f"the quantizer of '{self._layer.name}'", threads=1)


def find_quantizers(model: onnx.ModelProto, layers: Sequence[Layer]) -> dict[str, Quantizer]:
    """Return the quantizer of each layer, by name, for a model whose nodes are all named."""
    graph = OnnxGraph(model, batch=None)
    return {layer.name: Quantizer(model, graph, layer) for layer in layers}


def _subgraph(graph: OnnxGraph, target: str, source: str) -> list[NodeProto]:
    """Return the nodes, in order, that compute `target` from `source` and constants."""
    needed, names = {target}, {target}
    while names:
        found = [graph.producers[name] for name in names if name != source and name in graph.producers
                 and name not in graph.initializers]  # fmt: skip
        names = {name for node in found for name in node.input if name} - needed
        needed |= names
    return [
        node for node in graph.nodes
        if any(name in needed and name != source for name in node.output) and node.output[0] not in graph.initializers
    ]  # fmt: skip
