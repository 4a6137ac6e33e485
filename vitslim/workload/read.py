"""From an ONNX file to a workload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

from onnx import NodeProto, TensorProto

from vitslim.workload.file import load_onnx
from vitslim.workload.onnx_graph import OnnxGraph, layer_of, role_of
from vitslim.workload.operators import Operator, OpKind, Workload
from vitslim.workload.products import read_conv, read_gemm, read_matmul
from vitslim.workload.weights import element_bits

PRODUCTS: dict[str, Callable[[OnnxGraph, NodeProto], Operator]] = {
    "MatMul": read_matmul, "MatMulInteger": read_matmul, "QLinearMatMul": read_matmul, "Gemm": read_gemm,
    "Conv": read_conv, "ConvInteger": read_conv, "QLinearConv": read_conv,
}  # fmt: skip

KINDS: dict[OpKind, str] = {
    "softmax": "Softmax LogSoftmax",
    "norm": "LayerNormalization RMSNormalization BatchNormalization InstanceNormalization GroupNormalization "
    "LpNormalization",
    "elementwise": "Abs Add And BitShift Ceil Celu Clip CumSum Cos Div Elu Equal Erf Exp Floor Gelu Greater "
    "GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg "
    "Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tanh Where Xor",
    "movement": "Cast CastLike Concat ConstantOfShape DepthToSpace Dropout Expand EyeLike Flatten Gather Identity Pad "
    "Range Reshape Resize Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze",
    "select": "ArgMax ArgMin GatherElements GatherND NonZero OneHot ScatterElements ScatterND TopK Unique",
    "quantize": "QuantizeLinear DequantizeLinear DynamicQuantizeLinear",
}
REDUCTIONS = (
    "AveragePool GlobalAveragePool GlobalMaxPool MaxPool ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
"""Elementwise work on what goes in, not on what comes out."""
KIND_OF: dict[str, OpKind] = {name: kind for kind, names in KINDS.items() for name in names.split()}


def read_workload(path: Path, batch: int = 1) -> Workload:
    """Operators of an ONNX file with the batch dimension bound to `batch`.

    Raises InputError for a file that is missing, empty, truncated, not ONNX, or that does not take the batch size.
    """
    model = load_onnx(path)
    graph = OnnxGraph(model, batch)
    absorbed = {id(node) for erf in graph.nodes if erf.op_type == "Erf" for node in _gelu_chain(graph, erf)}
    operators: list[Operator] = []
    unknown: Counter[str] = Counter()
    folded = 0
    for node in graph.nodes:
        if graph.constant.issuperset(node.output):
            folded += 1
        elif id(node) not in absorbed:
            operator = _read_node(graph, node)
            if operator is None:
                unknown[_full_type(node)] += 1
            else:
                operators.append(operator)
    return Workload(
        batch=batch,
        operators=tuple(operators),
        params=_params(graph),
        file_bytes=path.stat().st_size,
        folded=folded,
        unknown=dict(sorted(unknown.items())),
    )


def _read_node(graph: OnnxGraph, node: NodeProto) -> Operator | None:
    """The operator of a node; None when its type is unknown."""
    if node.domain not in {"", "ai.onnx"}:
        return None
    if node.op_type in PRODUCTS:
        return PRODUCTS[node.op_type](graph, node)
    reduction = node.op_type in REDUCTIONS.split()
    kind: OpKind | None = "elementwise" if reduction else KIND_OF.get(node.op_type)
    if kind is None:
        return None
    values = node.input[:1] if reduction else node.output
    layer = layer_of(node)
    return Operator(
        name=node.name or node.output[0],
        op=kind,
        type="Gelu" if node.op_type == "Erf" else node.op_type,
        elements=sum(graph.types[value].elements for value in values if value in graph.types),
        layer=layer,
        role=node.op_type if layer == node.name else role_of(layer),
    )


def _full_type(node: NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _gelu_chain(graph: OnnxGraph, erf: NodeProto) -> Iterator[NodeProto]:
    """Nodes of `0.5 * x * (1 + erf(x / sqrt 2))` other than the Erf, which stands for the whole in a workload."""
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
    """Whether one operand is a single constant."""
    return any(
        name in graph.constant and name in graph.types and graph.types[name].elements == 1 for name in node.input
    )


def _params(graph: OnnxGraph) -> int:
    """Elements of float and narrow integer constants, without scales, zero points and single numbers."""
    beside = {name for node in graph.nodes for name in _quantiser_inputs(node)}
    return sum(
        prod(tensor.dims)
        for name, tensor in graph.initializers.items()
        if prod(tensor.dims) > 1 and name not in beside and _may_be_weight(tensor.data_type)
    )


def _quantiser_inputs(node: NodeProto) -> list[str]:
    """Scales and zero points among the inputs of a node."""
    if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        return list(node.input[1:])
    if node.op_type in {"MatMulInteger", "ConvInteger"}:
        return list(node.input[2:])
    return [*node.input[1:3], *node.input[4:]] if node.op_type in {"QLinearMatMul", "QLinearConv"} else []


def _may_be_weight(element: int) -> bool:
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
    return element in floats or (element != TensorProto.BOOL and element_bits(element) <= 8)
