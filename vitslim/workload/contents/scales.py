"""Find the scales and zero points of an ONNX graph, and the scales that are not positive and finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import NodeProto, numpy_helper

from vitslim.workload.contents.file_contents import Violation
from vitslim.workload.onnx_graph import TRANSPARENT, OnnxGraph, optional_input
from vitslim.workload.weights import find_weight, multiplies_by_scales

SCALES = {
    "QuantizeLinear": (1,), "DequantizeLinear": (1,), "QLinearMatMul": (1, 4, 6), "QLinearConv": (1, 4, 6),
    "QGemm": (1, 4, 7), "MatMulIntegerToFloat": (2, 3), "DynamicQuantizeMatMul": (2,), "MatMulNBits": (2,),
}  # fmt: skip
ZERO_POINTS = {
    "QuantizeLinear": (2,), "DequantizeLinear": (2,), "QLinearMatMul": (2, 5, 7), "QLinearConv": (2, 5, 7),
    "QGemm": (2, 5, 8), "MatMulIntegerToFloat": (4, 5), "DynamicQuantizeMatMul": (3,), "MatMulNBits": (3,),
    "MatMulInteger": (2, 3), "ConvInteger": (2, 3),
}  # fmt: skip
"""Operator type to the indices of its inputs that are scales (SCALES) or zero points (ZERO_POINTS)."""
QUANTIZER_CHAIN = TRANSPARENT | {"QuantizeLinear", "DequantizeLinear", "Clip"}
SEARCH_DEPTH = 8


def quantizer_constants(graph: OnnxGraph) -> set[str]:
    """Return the names of the initializers that are scales or zero points."""
    names = (
        optional_input(node, index)
        for node in graph.nodes
        for index in (*SCALES.get(node.op_type, ()), *ZERO_POINTS.get(node.op_type, ()))
    )
    factors = (node.input[1] for node in graph.nodes if multiplies_by_scales(graph, node))
    found = (find_weight(graph, name) for name in (*names, *factors) if name)
    return {weight.tensor.name for weight in found if weight is not None}


def invalid_scales(graph: OnnxGraph, layers: Mapping[str, str]) -> Iterator[Violation]:
    """Yield a violation for each operator with a constant scale that is not positive and finite.

    layers: name of the output of a layer's node to the name of the layer.
    """
    for node in graph.nodes:
        for index in SCALES.get(node.op_type, ()):
            constant = find_weight(graph, optional_input(node, index)) if optional_input(node, index) else None
            if constant is None:
                continue
            with np.errstate(invalid="ignore"):  # a damaged file may hold any bits
                values = np.asarray(numpy_helper.to_array(constant.tensor)).astype(np.float64)
            wrong = int((~(np.isfinite(values) & (values > 0))).sum())
            if wrong:
                where = _layer_after(graph, node, layers) or node.name or node.output[0]
                some = values[~(np.isfinite(values) & (values > 0))].flat[0]
                yield Violation(
                    where, "scales are positive and finite",
                    f"{wrong} of {values.size} in '{constant.tensor.name}' of {node.op_type} are not, such as {some:g}",
                )  # fmt: skip


def _layer_after(graph: OnnxGraph, node: NodeProto, layers: Mapping[str, str]) -> str:
    """Return the name of the layer that reads the output of a quantizer, or that is the quantizer; else empty."""
    frontier = [node]
    for _ in range(SEARCH_DEPTH):
        for current in frontier:
            if current.output[0] in layers:
                return layers[current.output[0]]
        frontier = [
            user
            for current in frontier
            if current is node or current.op_type in QUANTIZER_CHAIN
            for user in graph.consumers.get(current.output[0], [])
        ]
    return ""
