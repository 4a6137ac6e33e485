"""Bytes that go in and out of the nodes of an ONNX graph, each node by itself."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import NodeProto

from vitslim.workload.onnx_graph import OnnxGraph
from vitslim.workload.shapes import TensorType
from vitslim.workload.weights import activation_bits, element_bits, find_weight, weight_bits


def traffic(graph: OnnxGraph, node: NodeProto) -> tuple[int, int, int]:
    """Bytes of activations and of constants that a node reads, and bytes that it writes; unknown shapes count 0.

    What a DequantizeLinear gives counts at the width of the integers that went into it.
    """
    read = constant = 0
    for name in dict.fromkeys(node.input):
        if name in graph.types:
            if name in graph.constant:
                weight = find_weight(graph, name)
                bits = weight_bits(graph, weight) if weight else element_bits(graph.types[name].element)
                constant += graph.types[name].elements * bits
            else:
                read += graph.types[name].elements * activation_bits(graph, name)
    written = sum(one.elements * element_bits(one.element) for one in known_types(graph, node.output))
    return -(-read // 8), -(-constant // 8), -(-written // 8)


def known_types(graph: OnnxGraph, values: Iterable[str]) -> list[TensorType]:
    """Types of those values whose type is known."""
    return [graph.types[name] for name in values if name in graph.types]
