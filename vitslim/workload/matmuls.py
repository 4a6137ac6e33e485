"""Read the GEMM sizes of an ONNX graph: MatMul, Gemm, Conv, Einsum and Attention, float and integer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from onnx import NodeProto

from vitslim.errors import InputError
from vitslim.workload.activation_bits import activation_bits
from vitslim.workload.onnx_graph import TRANSPARENT, OnnxGraph, attribute, layer_of, role_of
from vitslim.workload.operators import Operator
from vitslim.workload.weights import Weight, container, find_weight, sparsity, weight_bits

SCORE_CHAIN = TRANSPARENT | {"Mul", "Div", "Add", "Where", "QuantizeLinear", "DequantizeLinear", "Slice", "Clip",
                            "QLinearMul", "QLinearAdd"}  # fmt: skip
"""Operators that may be between an attention matmul and the softmax."""
SOFTMAX = {"Softmax", "QLinearSoftmax"}
SEARCH_DEPTH = 8

TWO_FOUR = {"MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "QGemm", "Conv", "ConvInteger", "QLinearConv"}
"""Operators whose reduction runs along known dimensions of the weight, along which a 2:4 pattern is detected."""


def read_matmul(graph: OnnxGraph, node: NodeProto) -> Operator:
    """Read MatMul and MatMulInteger (operands 0 and 1) and QLinearMatMul (operands 0 and 3)."""
    left_name, right_name = node.input[0], node.input[3 if node.op_type == "QLinearMatMul" else 1]
    left, right = graph.type_of(left_name, node).shape, graph.type_of(right_name, node).shape
    left = (1, *left) if len(left) == 1 else left
    right = (*right, 1) if len(right) == 1 else right
    elements = graph.type_of(node.output[0], node).elements
    weight = find_weight(graph, right_name)
    if weight is not None and prod(right[:-2]) == 1:
        return weighted(graph, node, (prod(left[:-1]), right[-1], left[-1], 1), weight, -2, left_name)
    batch = elements // (left[-2] * right[-1])
    if weight is not None:
        return weighted(graph, node, (left[-2], right[-1], left[-1], batch), weight, -2, left_name)
    swapped = find_weight(graph, left_name)
    if swapped is not None:
        return weighted(graph, node, (right[-1], left[-2], left[-1], batch), swapped, -1, right_name)
    return of_activations(graph, node, (left[-2], right[-1], left[-1], batch), left_name, right_name)


def read_gemm(graph: OnnxGraph, node: NodeProto) -> Operator:
    """Read Gemm (operands 0 and 1) and QGemm (operands 0 and 3), which are matrices and may be transposed."""
    right_name = node.input[3 if node.op_type == "QGemm" else 1]
    left, right = graph.type_of(node.input[0], node).shape, graph.type_of(right_name, node).shape
    m, k = reversed(left) if attribute(node, "transA", 0) else left
    flipped = attribute(node, "transB", 0)
    n = right[0] if flipped else right[1]
    weight = find_weight(graph, right_name)
    if weight is None:
        return of_activations(graph, node, (m, n, k, 1), node.input[0], right_name)
    return weighted(graph, node, (m, n, k, 1), weight, 1 if flipped else 0, node.input[0])


def read_conv(graph: OnnxGraph, node: NodeProto) -> Operator:
    """Read Conv, ConvInteger (weight operand 1) and QLinearConv (operand 3) as one GEMM per group; rows are positions.

    The columns are output channels, the reduction runs over input channels and kernel positions.
    """
    name = node.input[3 if node.op_type == "QLinearConv" else 1]
    out, kernel = graph.type_of(node.output[0], node).shape, graph.type_of(name, node).shape
    groups = attribute(node, "group", 1)
    sizes = (out[0] * prod(out[2:]), kernel[0] // max(1, groups), prod(kernel[1:]), groups)
    weight = find_weight(graph, name)
    return weighted(graph, node, sizes, weight, None, node.input[0])


def read_transposed_conv(graph: OnnxGraph, node: NodeProto) -> Operator:
    """Read ConvTranspose as one GEMM per group: rows are input positions, columns the outputs that each contributes to.

    The reduction runs over input channels.
    """
    data, kernel = graph.type_of(node.input[0], node).shape, graph.type_of(node.input[1], node).shape
    groups = attribute(node, "group", 1)
    sizes = (data[0] * prod(data[2:]), prod(kernel[1:]), kernel[0] // max(1, groups), groups)
    return weighted(graph, node, sizes, find_weight(graph, node.input[1]), None, node.input[0])


def read_einsum(graph: OnnxGraph, node: NodeProto) -> Operator:
    """Read Einsum of two operands as GEMMs: shared letters are the count where the output has them, else the reduction.

    Raises InputError for other numbers of operands and for an equation with an ellipsis.
    """
    equation = next((a.s.decode("utf-8", "replace") for a in node.attribute if a.name == "equation"), "")
    terms, _, result = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    shapes = [graph.type_of(name, node).shape for name in node.input]
    if len(shapes) != 2 or [len(s) for s in shapes] != [len(t) for t in letters] or not result:
        raise InputError(f"Einsum '{node.name}' has the equation '{equation}', which is not supported",
                         "use two operands with one letter per dimension and an explicit output")  # fmt: skip
    length = {letter: size for term, shape in zip(letters, shapes, strict=True)
              for letter, size in zip(term, shape, strict=True)}  # fmt: skip
    left, right, out = (set(term) for term in (*letters, result))
    count, rows, columns, reduced = (
        prod(length[letter] for letter in found)
        for found in (left & right & out, left - right, right - left, (left & right) - out)
    )
    weight = find_weight(graph, node.input[1])
    if weight is not None:
        return weighted(graph, node, (rows, columns, reduced, count), weight, None, node.input[0])
    return of_activations(graph, node, (rows, columns, reduced, count), node.input[0], node.input[1])


def read_attention(graph: OnnxGraph, node: NodeProto) -> tuple[Operator, ...]:
    """Read Attention (opset 23) as QK^T, softmax and PV of every head and image."""
    shapes = [graph.type_of(name, node).shape for name in node.input[:3]]
    if len(shapes[0]) == 4:
        heads, width, value_width = shapes[0][1], shapes[0][-1], shapes[2][-1]
    else:
        heads = max(1, attribute(node, "q_num_heads", 1))
        width = shapes[0][-1] // heads
        value_width = shapes[2][-1] // max(1, attribute(node, "kv_num_heads", heads))
    count, rows, keys = shapes[0][0] * heads, shapes[0][-2], shapes[1][-2]
    scores = of_activations(graph, node, (rows, keys, width, count), node.input[0], node.input[1])
    values = of_activations(graph, node, (rows, value_width, keys, count), node.input[0], node.input[2])
    softmax = Operator(scores.name, "softmax", "Softmax", elements=count * rows * keys, layer=scores.layer,
                       role="Softmax")  # fmt: skip
    return replace(scores, role="QK^T"), softmax, replace(values, role="PV")


def weighted(
    graph: OnnxGraph, node: NodeProto, sizes: tuple[int, int, int, int], weight: Weight | None, axis: int | None,
    data: str,
) -> Operator:  # fmt: skip
    """Return a GEMM with a weight whose reduction is dimension `axis`; None for a convolution.

    sizes: rows, columns, reduction, count. data: name of the activation.
    """
    m, n, k, count = sizes
    layer, bits = layer_of(node, weight.tensor.name if weight else ""), activation_bits(graph, node, data)
    return Operator(
        name=node.name or node.output[0],
        op="conv" if "Conv" in node.op_type else "gemm",
        type=node.op_type,
        m=m, n=n, k=k, count=count,
        elements=m * n * count,
        weight=weight is not None,
        weight_bits=weight_bits(graph, weight) if weight else 0,
        activation_bits=bits,
        float8=weight is not None and container(weight).startswith("FLOAT8"),
        sparsity=sparsity(graph, weight, axis, bits) if weight and node.op_type in TWO_FOUR else "",
        layer=layer,
        role=node.op_type if layer == node.name else role_of(layer),
    )  # fmt: skip


def of_activations(
    graph: OnnxGraph, node: NodeProto, sizes: tuple[int, int, int, int], left: str, right: str
) -> Operator:
    """Return a matmul of two activations; sizes: rows, columns, reduction, count."""
    m, n, k, count = sizes
    return Operator(
        name=node.name or node.output[0],
        op="attention",
        type=node.op_type,
        m=m, n=n, k=k, count=count,
        elements=m * n * count,
        weight_bits=activation_bits(graph, node, right),
        activation_bits=activation_bits(graph, node, left),
        layer=layer_of(node),
        role=_attention_role(graph, node, m),
    )  # fmt: skip


def _attention_role(graph: OnnxGraph, node: NodeProto, rows: int) -> str:
    """Return `QK^T` (`class attention` for one row) before a softmax, `PV` after one, else `activation matmul`."""
    if _reaches_softmax(node, lambda n: [user for out in n.output for user in graph.consumers.get(out, [])]):
        return "class attention" if rows == 1 else "QK^T"
    if _reaches_softmax(node, lambda n: [graph.producers[n.input[0]]] if n.input[0] in graph.producers else []):
        return "PV"
    return "activation matmul"


def _reaches_softmax(start: NodeProto, neighbors: Callable[[NodeProto], list[NodeProto]]) -> bool:
    frontier = neighbors(start)
    for _ in range(SEARCH_DEPTH):
        if any(node.op_type in SOFTMAX for node in frontier):
            return True
        frontier = [further for node in frontier if node.op_type in SCORE_CHAIN for further in neighbors(node)]
    return False
