"""Memory traffic of single nodes of an ONNX graph, without fusion."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import NodeProto

from vitslim.workload.activation_bits import stored_bits
from vitslim.workload.onnx_graph import OnnxGraph
from vitslim.workload.type_inference import TensorType
from vitslim.workload.weights import element_bits, find_weight, weight_bits


def traffic(graph: OnnxGraph, node: NodeProto) -> tuple[int, int, int]:
    """Return the bytes of activations and of constants that a node reads, and the bytes that it writes.

    The output of DequantizeLinear counts at the width of its integer input; values of unknown shape count as 0.
    """
    read = constant = 0
    for name in dict.fromkeys(node.input):
        if name in graph.types:
            if name in graph.constant:
                weight = find_weight(graph, name)
                bits = weight_bits(graph, weight) if weight else element_bits(graph.types[name].element)
                constant += graph.types[name].elements * bits
            else:
                read += graph.types[name].elements * stored_bits(graph, name)
    written = sum(one.elements * element_bits(one.element) for one in known_types(graph, node.output))
    return -(-read // 8), -(-constant // 8), -(-written // 8)


def known_types(graph: OnnxGraph, values: Iterable[str]) -> list[TensorType]:
    """Return the types of the values whose type is known."""
    return [graph.types[name] for name in values if name in graph.types]
