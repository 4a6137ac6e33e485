"""Quantized operators of ONNX Runtime, in standard forms with the same shapes and types.

ONNX cannot infer the results of operators of the domain `com.microsoft`, which fill QOperator files. Type inference
reads a standard operator in their place; everything else reads the operators of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from onnx import NodeProto, TensorProto, helper

MICROSOFT = "com.microsoft"


def standard_forms(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield the nodes of a graph, with contributed operators of known meaning in a standard form."""
    for node in nodes:
        form = FORMS.get(node.op_type) if node.domain == MICROSOFT else None
        yield from (node,) if form is None else form(node)


def _same(node: NodeProto) -> Iterator[NodeProto]:
    """An operator whose output has the shape and type of its first input."""
    yield helper.make_node("Identity", node.input[:1], node.output[:1])


def _broadcast(node: NodeProto) -> Iterator[NodeProto]:
    """An elementwise operator of two quantized operands: value, scale, zero point; value, scale, zero point."""
    yield helper.make_node("Add", [node.input[0], node.input[3]], node.output[:1])


def _concat(node: NodeProto) -> Iterator[NodeProto]:
    """Output scale and zero point come first, then value, scale and zero point of each operand."""
    concat = helper.make_node("Concat", node.input[2::3], node.output[:1])
    concat.attribute.extend(one for one in node.attribute if one.name == "axis")
    yield concat


def _gemm(node: NodeProto) -> Iterator[NodeProto]:
    """QGemm: its output is quantized if it has a zero point, else float."""
    left, right, result = (f"{node.output[0]}.{part}" for part in ("left", "right", "float"))
    yield helper.make_node("Cast", [node.input[0]], [left], to=TensorProto.FLOAT)
    yield helper.make_node("Cast", [node.input[3]], [right], to=TensorProto.FLOAT)
    is_quantized = len(node.input) > 8 and node.input[8]
    gemm = helper.make_node("Gemm", [left, right], [result if is_quantized else node.output[0]])
    gemm.attribute.extend(one for one in node.attribute if one.name in {"transA", "transB"})
    yield gemm
    if is_quantized:
        yield helper.make_node("QuantizeLinear", [result, *node.input[7:9]], node.output[:1])


FORMS: Mapping[str, Callable[[NodeProto], Iterator[NodeProto]]] = MappingProxyType({
    "QGemm": _gemm, "QLinearAdd": _broadcast, "QLinearMul": _broadcast, "QLinearConcat": _concat,
    "QLinearSoftmax": _same, "QLinearSigmoid": _same, "QLinearLeakyRelu": _same, "Gelu": _same, "QuickGelu": _same,
})  # fmt: skip
"""Operator type to a function that yields its standard form."""
