"""Bits of the activations that operators read: of their type, or fewer where a Clip narrows the integers."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, numpy_helper

from vitslim.units import INTEGER_BITS_MAX
from vitslim.workload.onnx_graph import TRANSPARENT, OnnxGraph, optional_input
from vitslim.workload.weights import element_bits, find_weight

ACTIVATION_CHAIN = TRANSPARENT | {"Slice", "Split", "Gather", "Expand", "Pad", "Concat"}
"""Operators that move activations without changing their values."""
ACTIVATION_ZERO_POINTS = {"QLinearMatMul": 2, "QLinearConv": 2, "QGemm": 2, "MatMulInteger": 2, "ConvInteger": 2,
                         "MatMulIntegerToFloat": 4}  # fmt: skip
"""Integer operator to the index of the zero point of its activation, which has the type of the activation."""
QUANTIZING_OPERATORS = {"DynamicQuantizeMatMul": 8}
"""Operators that quantize their float input themselves, with the bits of the integers."""


def stored_bits(graph: OnnxGraph, value: str) -> int:
    """Return the bits in which an activation is stored: those before its DequantizeLinear, else of its own type."""
    own = graph.types.get(value)
    while value in graph.producers:
        node = graph.producers[value]
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.types:
            return element_bits(graph.types[node.input[0]].element)
        if node.op_type not in ACTIVATION_CHAIN:
            break
        value = node.input[0]
    return element_bits(own.element) if own else 0


def activation_bits(graph: OnnxGraph, node: NodeProto, value: str) -> int:
    """Return the bits that the integers of an input of a node need; those of its type for a float input.

    INT3, INT5, INT6 and INT7 activations are INT8 or UINT8 values limited by a Clip.
    """
    if node.op_type in QUANTIZING_OPERATORS:
        return QUANTIZING_OPERATORS[node.op_type]
    bits = stored_bits(graph, value) or _zero_point_bits(graph, node)
    if bits > INTEGER_BITS_MAX:
        return bits
    span = _clipped_span(graph, value)
    return bits if span is None else min(bits, span.bit_length())


def _zero_point_bits(graph: OnnxGraph, node: NodeProto) -> int:
    """Return the bits of the type of the zero point of the activation of an integer operator; 0 without one.

    The operator fixes the type of an activation whose own type is unknown.
    """
    name = optional_input(node, ACTIVATION_ZERO_POINTS.get(node.op_type))
    return element_bits(graph.types[name].element) if name in graph.types else 0


def _clipped_span(graph: OnnxGraph, value: str) -> int | None:
    """Return the number of scales between the limits of a Clip, which may be before or after the QuantizeLinear."""
    scale: float | None = 1.0
    while value in graph.producers and scale is not None:
        node = graph.producers[value]
        if node.op_type == "Clip":
            low, high = (_scalar(graph, optional_input(node, index)) for index in (1, 2))
            return None if low is None or high is None or scale <= 0 else round((high - low) / scale)
        if node.op_type == "QuantizeLinear":
            scale = _scalar(graph, optional_input(node, 1))
        elif node.op_type != "DequantizeLinear" and node.op_type not in ACTIVATION_CHAIN:
            return None
        value = node.input[0]
    return None


def _scalar(graph: OnnxGraph, value: str) -> float | None:
    """Return a constant of one element; None for any other value and for one that is not finite."""
    found = find_weight(graph, value) if value else None
    if found is None:
        return None
    array = np.asarray(numpy_helper.to_array(found.tensor)).astype(np.float64)
    return float(array.flat[0]) if array.size == 1 and np.isfinite(array).all() else None
