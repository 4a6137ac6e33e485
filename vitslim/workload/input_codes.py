"""Bits of what a layer takes in, with the Clip that keeps the codes of 3, 5, 6 or 7 bits within their range."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, numpy_helper

from vitslim.workload.facts import INTEGER_BITS_MAX
from vitslim.workload.onnx_graph import OnnxGraph
from vitslim.workload.weight_codes import optional_input
from vitslim.workload.weights import ACTIVATION_CHAIN, activation_bits, find_weight

QUANTIZES_ITSELF = {"DynamicQuantizeMatMul": 8}
"""Operators that take a float input and quantize it, with the bits of their codes."""


def input_bits(graph: OnnxGraph, node: NodeProto, value: str) -> int:
    """Bits that the codes of an input need: of their type, or fewer where a Clip narrows them."""
    if node.op_type in QUANTIZES_ITSELF:
        return QUANTIZES_ITSELF[node.op_type]
    bits = activation_bits(graph, value)
    if bits > INTEGER_BITS_MAX:
        return bits
    span = _clipped_span(graph, value)
    return bits if span is None else min(bits, span.bit_length())


def _clipped_span(graph: OnnxGraph, value: str) -> int | None:
    """Largest minus least code that a Clip of the codes, or of the numbers before they are quantized, lets through."""
    scale: float | None = 1.0
    while value in graph.producers and scale is not None:
        node = graph.producers[value]
        if node.op_type == "Clip":
            low, high = (_number(graph, optional_input(node, index)) for index in (1, 2))
            return None if low is None or high is None or scale <= 0 else round((high - low) / scale)
        if node.op_type == "QuantizeLinear":
            scale = _number(graph, optional_input(node, 1))
        elif node.op_type != "DequantizeLinear" and node.op_type not in ACTIVATION_CHAIN:
            return None
        value = node.input[0]
    return None


def _number(graph: OnnxGraph, value: str) -> float | None:
    """A single constant; None for anything else and for what is not finite."""
    found = find_weight(graph, value) if value else None
    if found is None:
        return None
    array = np.asarray(numpy_helper.to_array(found.tensor)).astype(np.float64)
    return float(array.flat[0]) if array.size == 1 and np.isfinite(array).all() else None
