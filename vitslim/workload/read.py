"""Read the workload of an ONNX file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import replace
from itertools import accumulate
from math import prod
from pathlib import Path

from onnx import NodeProto, TensorProto

from vitslim.errors import InputError
from vitslim.workload.contributed import FORMS, MICROSOFT
from vitslim.workload.fusion import Fusion
from vitslim.workload.matmuls import (
    read_attention,
    read_conv,
    read_einsum,
    read_gemm,
    read_matmul,
    read_transposed_conv,
)
from vitslim.workload.onnx_file import load_onnx
from vitslim.workload.onnx_graph import OnnxGraph, layer_of, role_of
from vitslim.workload.operator_kinds import DOMAINS, KIND_OF, REDUCING
from vitslim.workload.operators import MATMUL_KINDS, Kernel, Operator, OpKind, Workload
from vitslim.workload.traffic import known_types, traffic
from vitslim.workload.weights import element_bits

READERS: dict[str, Callable[[OnnxGraph, NodeProto], Operator]] = {
    "MatMul": read_matmul, "MatMulInteger": read_matmul, "QLinearMatMul": read_matmul, "Gemm": read_gemm,
    "QGemm": read_gemm, "Conv": read_conv, "ConvInteger": read_conv, "QLinearConv": read_conv,
    "ConvTranspose": read_transposed_conv, "Einsum": read_einsum,
}  # fmt: skip

COSTLY = (*MATMUL_KINDS, "softmax", "norm", "elementwise")
"""Kinds whose cost depends on their elements, so that their shapes must be known."""
LARGEST = 2**62
"""Largest number of MACs, elements or bytes of one operator."""


def read_workload(path: Path, batch: int = 1) -> Workload:
    """Return the operators of an ONNX file with the batch dimension bound to `batch`, and their fused kernels.

    Raises InputError for a file that is missing, empty, truncated or not ONNX, that does not accept the batch size,
    that contains control flow, or in which the shape of a costly operator is unknown or has a dimension of zero.
    """
    model = load_onnx(path)
    graph = OnnxGraph(model, batch)
    absorbed = {node.output[0] for erf in graph.nodes if erf.op_type == "Erf" for node in _gelu_chain(graph, erf)}
    operators: dict[str, tuple[Operator, ...]] = {}
    unknown: Counter[str] = Counter()
    unknown_bytes: Counter[str] = Counter()
    folded = 0
    for node in graph.nodes:
        if graph.constant.issuperset(node.output):
            folded += 1
        elif node.output[0] not in absorbed:
            found = _read_node(graph, node)
            operators[node.output[0]] = found
            if not found:
                unknown[_full_type(node)] += 1
                unknown_bytes[_full_type(node)] += sum(traffic(graph, node))
    flat = tuple(operator for found in operators.values() for operator in found)
    return Workload(
        batch=batch,
        operators=flat,
        params=_params(graph),
        file_bytes=path.stat().st_size,
        folded=folded,
        unknown=dict(sorted(unknown.items())),
        unknown_bytes=dict(sorted(unknown_bytes.items())),
        kernels=_kernels(graph, operators, absorbed, flat),
    )


def _kernels(
    graph: OnnxGraph, operators: Mapping[str, tuple[Operator, ...]], absorbed: Set[str], flat: tuple[Operator, ...]
) -> tuple[Kernel, ...]:
    kinds: dict[str, str] = {name: found[0].op for name, found in operators.items() if found}
    roles = {name: found[0].role for name, found in operators.items() if found}
    ends = accumulate(map(len, operators.values()))
    places = {name: tuple(range(end - len(operators[name]), end)) for name, end in zip(operators, ends, strict=True)}
    return Fusion(graph, kinds | dict.fromkeys(absorbed, "elementwise"), roles).kernels(places, flat)


def _read_node(graph: OnnxGraph, node: NodeProto) -> tuple[Operator, ...]:
    """Return the operators of a node; none when its type is unknown."""
    if node.domain not in DOMAINS and not (node.domain == MICROSOFT and node.op_type in FORMS):
        return ()
    if node.op_type == "Attention":
        found = read_attention(graph, node)
    else:
        one = READERS[node.op_type](graph, node) if node.op_type in READERS else _read_other(graph, node)
        found = (one,) if one else ()
    read, constant, written = traffic(graph, node)
    # The traffic belongs to the node: of several operators the first one carries it.
    return tuple(
        replace(_checked(operator), read_bytes=read, constant_bytes=constant, written_bytes=written)
        if index == 0 else _checked(operator)
        for index, operator in enumerate(found)
    )  # fmt: skip


def _read_other(graph: OnnxGraph, node: NodeProto) -> Operator | None:
    """Return an operator that is not a GEMM; None when its type is unknown."""
    reduction = node.op_type in REDUCING
    kind: OpKind | None = "elementwise" if reduction else KIND_OF.get(node.op_type)
    if kind is None:
        return None
    values = node.input[:1] if reduction else [name for name in node.output if name]
    types = [graph.type_of(name, node) for name in values] if kind in COSTLY else known_types(graph, values)
    layer = layer_of(node)
    return Operator(
        name=node.name or node.output[0],
        op=kind,
        type="Gelu" if node.op_type == "Erf" else node.op_type,
        elements=sum(one.elements for one in types),
        layer=layer,
        role=node.op_type if layer == node.name else role_of(layer),
    )


def _checked(operator: Operator) -> Operator:
    """Return the operator. Raises InputError when one of its sizes is zero, or exceeds LARGEST."""
    shown = f"{operator.type} '{operator.name}'"
    sizes = (
        (operator.m, operator.n, operator.k, operator.count) if operator.op in MATMUL_KINDS else (operator.elements,)
    )
    if operator.op in COSTLY and min(sizes) < 1:
        raise InputError(f"{shown} has a dimension of zero", "export the model for a fixed image size")
    if max(operator.macs, operator.elements, operator.bytes) > LARGEST:
        raise InputError(f"the sizes of {shown} exceed 2^62", "the file is damaged: export it again")
    return operator


def _full_type(node: NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _gelu_chain(graph: OnnxGraph, erf: NodeProto) -> Iterator[NodeProto]:
    """Yield the nodes of `0.5 * x * (1 + erf(x / sqrt 2))` but the Erf, which represents the GELU in the workload."""
    before = graph.producers.get(erf.input[0])
    if before is None or before.op_type not in {"Div", "Mul"} or not _scales(graph, before):
        return
    plus = graph.only_consumer(erf)
    if plus is None or plus.op_type != "Add" or not _scales(graph, plus):
        return
    yield before
    yield plus
    times = graph.only_consumer(plus)
    if times is None or times.op_type != "Mul":
        return
    yield times
    other = next((graph.producers[name] for name in times.input if name in graph.producers
                  and graph.producers[name] is not plus), None)  # fmt: skip
    if other is not None and other.op_type == "Mul" and _scales(graph, other):
        yield other
        return
    half = graph.only_consumer(times)
    if half is not None and half.op_type == "Mul" and _scales(graph, half):
        yield half


def _scales(graph: OnnxGraph, node: NodeProto) -> bool:
    """Return whether one operand is a constant of one element."""
    return any(
        name in graph.constant and name in graph.types and graph.types[name].elements == 1 for name in node.input
    )


def _params(graph: OnnxGraph) -> int:
    """Return the number of elements of float and narrow integer constants, without scales, zero points and scalars."""
    quantizer_inputs = {name for node in graph.nodes for name in _quantizer_inputs(node)}
    return sum(
        prod(tensor.dims)
        for name, tensor in graph.initializers.items()
        if prod(tensor.dims) > 1 and name not in quantizer_inputs and _may_be_weight(tensor.data_type)
    )


def _quantizer_inputs(node: NodeProto) -> list[str]:
    """Return the names of the scales and zero points of a node."""
    if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        return list(node.input[1:])
    if node.op_type in {"MatMulInteger", "ConvInteger"}:
        return list(node.input[2:])
    return [*node.input[1:3], *node.input[4:]] if node.op_type in {"QLinearMatMul", "QLinearConv", "QGemm"} else []


def _may_be_weight(element: int) -> bool:
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
    return element in floats or (element != TensorProto.BOOL and element_bits(element) <= 8)
