"""Matrix products in an ONNX graph: MatMul, Gemm and Conv in their float and integer forms."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from onnx import NodeProto

from vitslim.workload.onnx_graph import TRANSPARENT, OnnxGraph, attribute, layer_of, role_of
from vitslim.workload.operators import Operator
from vitslim.workload.weights import Weight, activation_bits, find_weight, sparsity, weight_bits

SCORE_CHAIN = TRANSPARENT | {"Mul", "Div", "Add", "Where", "QuantizeLinear", "DequantizeLinear", "Slice"}
"""What may stand between an attention product and the softmax."""
SEARCH_DEPTH = 8


def read_matmul(graph: OnnxGraph, node: NodeProto) -> Operator:
    """MatMul, MatMulInteger (operands 0 and 1) and QLinearMatMul (operands 0 and 3)."""
    left_name, right_name = node.input[0], node.input[3 if node.op_type == "QLinearMatMul" else 1]
    left, right = graph.type_of(left_name, node).shape, graph.type_of(right_name, node).shape
    left = (1, *left) if len(left) == 1 else left
    right = (*right, 1) if len(right) == 1 else right
    elements = graph.type_of(node.output[0], node).elements
    weight = find_weight(graph, right_name)
    if weight is not None and prod(right[:-2]) == 1:
        return _weighted(graph, node, (prod(left[:-1]), right[-1], left[-1], 1), weight, -2, left_name)
    batch = elements // (left[-2] * right[-1])
    if weight is not None:
        return _weighted(graph, node, (left[-2], right[-1], left[-1], batch), weight, -2, left_name)
    swapped = find_weight(graph, left_name)
    if swapped is not None:
        return _weighted(graph, node, (right[-1], left[-2], left[-1], batch), swapped, -1, right_name)
    return _attention(graph, node, (left[-2], right[-1], left[-1], batch), left_name, right_name)


def read_gemm(graph: OnnxGraph, node: NodeProto) -> Operator:
    """Gemm: 2-d operands that may be transposed."""
    left, right = graph.type_of(node.input[0], node).shape, graph.type_of(node.input[1], node).shape
    m, k = reversed(left) if attribute(node, "transA", 0) else left
    flipped = attribute(node, "transB", 0)
    n = right[0] if flipped else right[1]
    weight = find_weight(graph, node.input[1])
    if weight is None:
        return _attention(graph, node, (m, n, k, 1), node.input[0], node.input[1])
    return _weighted(graph, node, (m, n, k, 1), weight, 1 if flipped else 0, node.input[0])


def read_conv(graph: OnnxGraph, node: NodeProto) -> Operator:
    """Conv, ConvInteger (weight operand 1) and QLinearConv (operand 3) as one product a group; rows are positions."""
    name = node.input[3 if node.op_type == "QLinearConv" else 1]
    out, kernel = graph.type_of(node.output[0], node).shape, graph.type_of(name, node).shape
    groups = attribute(node, "group", 1)
    sizes = (out[0] * prod(out[2:]), kernel[0] // groups, prod(kernel[1:]), groups)
    weight = find_weight(graph, name)
    return _weighted(graph, node, sizes, weight, None, node.input[0])


def _weighted(
    graph: OnnxGraph, node: NodeProto, sizes: tuple[int, int, int, int], weight: Weight | None, axis: int | None,
    data: str,
) -> Operator:  # fmt: skip
    """A product with a weight that is reduced along `axis`; None for a convolution."""
    m, n, k, count = sizes
    layer = layer_of(node, weight.tensor.name if weight else "")
    return Operator(
        name=node.name or node.output[0],
        op="conv" if axis is None else "gemm",
        type=node.op_type,
        m=m, n=n, k=k, count=count,
        elements=m * n * count,
        weight=weight is not None,
        weight_bits=weight_bits(graph, weight) if weight else 0,
        input_bits=activation_bits(graph, data),
        sparsity=sparsity(graph, weight, axis) if weight else "",
        layer=layer,
        role=node.op_type if layer == node.name else role_of(layer),
    )  # fmt: skip


def _attention(graph: OnnxGraph, node: NodeProto, sizes: tuple[int, int, int, int], left: str, right: str) -> Operator:
    m, n, k, count = sizes
    return Operator(
        name=node.name or node.output[0],
        op="attention",
        type=node.op_type,
        m=m, n=n, k=k, count=count,
        elements=m * n * count,
        weight_bits=activation_bits(graph, right),
        input_bits=activation_bits(graph, left),
        layer=layer_of(node),
        role=_attention_role(graph, node, m),
    )  # fmt: skip


def _attention_role(graph: OnnxGraph, node: NodeProto, rows: int) -> str:
    """Scores lead to a softmax, values come after one; what is neither belongs to token squeezing or the like."""
    if _reaches_softmax(node, lambda n: [user for out in n.output for user in graph.consumers.get(out, [])]):
        return "class attention" if rows == 1 else "QK^T"
    if _reaches_softmax(node, lambda n: [graph.producers[n.input[0]]] if n.input[0] in graph.producers else []):
        return "PV"
    return "product of activations"


def _reaches_softmax(start: NodeProto, neighbours: Callable[[NodeProto], list[NodeProto]]) -> bool:
    frontier = neighbours(start)
    for _ in range(SEARCH_DEPTH):
        if any(node.op_type == "Softmax" for node in frontier):
            return True
        frontier = [further for node in frontier if node.op_type in SCORE_CHAIN for further in neighbours(node)]
    return False
