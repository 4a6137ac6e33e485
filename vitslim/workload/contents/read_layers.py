"""Read the layers of an ONNX file from their stored values, and compare them with their annotations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from onnx import NodeProto

from vitslim.errors import InputError
from vitslim.sparsity import PAIRS, TWO_FOUR, UNSTRUCTURED, parse_pattern, zeros
from vitslim.units import INTEGER_BITS_MAX
from vitslim.workload.activation_bits import activation_bits
from vitslim.workload.contents.annotations import find_annotation, node_annotation
from vitslim.workload.contents.file_contents import Annotation, Layer, Violation
from vitslim.workload.contents.weight_matrix import (
    FLOAT_OPERATORS,
    OPERANDS,
    PACKED,
    WeightMatrix,
    patterns,
    read_weight_matrix,
    runs_too_dense,
)
from vitslim.workload.integrity import tensor_bytes
from vitslim.workload.onnx_graph import OnnxGraph, attribute, layer_of, optional_input
from vitslim.workload.weights import DEQUANTIZING, Weight, container, find_weight, integer_group_scales, weight_bits


def read_layers(graph: OnnxGraph, listed: Sequence[Annotation]) -> tuple[tuple[Layer, ...], tuple[Violation, ...]]:
    """Return every layer with a weight of two dimensions or more, in graph order, and violations of its annotation.

    Raises InputError when the shapes of weight, zero points and operator do not match.
    """
    layers, violations = [], []
    for node in graph.nodes:
        found = _weight_of(graph, node)
        if found is None:
            continue
        weight, left = found
        try:
            matrix = read_weight_matrix(graph, node, weight, left)
        except (ValueError, IndexError) as error:
            shown = f"the weight '{weight.tensor.name}' of {node.op_type} '{node.name}'"
            raise InputError(f"{shown} cannot be read: {error}", "the file is damaged: export it again") from error
        annotation = node_annotation(node) or find_annotation(
            listed, layer_of(node, weight.tensor.name), weight.tensor.name
        )
        layer = _layer(graph, node, (weight, left), matrix, annotation)
        layers.append(layer)
        if annotation is not None:
            violations += [*_check_pattern(layer, annotation, matrix), *_check_bits(graph, layer, annotation, weight)]
    return tuple(layers), tuple(violations)


def activation_matmuls(graph: OnnxGraph) -> tuple[str, ...]:
    """Return the names of the nodes that multiply two quantized activations."""
    return tuple(
        node.name for node in graph.nodes
        if node.op_type in {"MatMul", "Gemm"} and _weight_of(graph, node) is None
        and all(activation_bits(graph, node, name) <= INTEGER_BITS_MAX for name in node.input[:2])
    )  # fmt: skip


def _weight_of(graph: OnnxGraph, node: NodeProto) -> tuple[Weight, bool] | None:
    """Return the weight of a node, and whether it is the left operand; None for a node without a weight."""
    operands = OPERANDS.get(node.op_type)
    if operands is None or not node.output or graph.constant.issuperset(node.output):
        return None
    for index, left in ((operands.weight, False), (operands.data, True)):
        name = optional_input(node, index)
        weight = find_weight(graph, name) if name and (not left or node.op_type == "MatMul") else None
        if weight is not None and len(weight.tensor.dims) > 1:
            return weight, left
    return None


def _layer(
    graph: OnnxGraph, node: NodeProto, operand: tuple[Weight, bool], matrix: WeightMatrix, annotation: Annotation | None
) -> Layer:
    (weight, left), operands = operand, OPERANDS[node.op_type]
    found = attribute(node, "bits", 4) if node.op_type == PACKED else weight_bits(graph, weight)
    noted = annotation.weight_bits if annotation else None
    bits = noted if noted is not None and noted < found and matrix.integer and _fits(matrix, weight, noted) else found
    return Layer(
        name=layer_of(node, weight.tensor.name), node=node.name, type=node.op_type, weight=weight.tensor.name,
        outputs=matrix.values.shape[0], reduction=matrix.values.shape[1],
        container=container(weight), weight_bits=bits,
        activation_bits=activation_bits(graph, node, node.input[operands.weight if left else operands.data]),
        granularity=_granularity(graph, node, weight),
        int_min=matrix.limits[0] if matrix.limits else None, int_max=matrix.limits[1] if matrix.limits else None,
        pair_sum_max=matrix.pair_sum_max, zeros=int(np.count_nonzero(matrix.zeros)), patterns=patterns(matrix.zeros),
        annotation=annotation,
        quantized_by=_quantized_by(node, weight, matrix.integer),
        stored_bytes=tensor_bytes(weight.tensor),
    )  # fmt: skip


def _quantized_by(node: NodeProto, weight: Weight, integer: bool) -> str:
    types = {one.op_type for one in weight.chain}
    if node.op_type not in FLOAT_OPERATORS:
        return "integer" if integer or types & DEQUANTIZING else ""
    if types & {"DequantizeLinear", "QuantizeLinear"}:
        return "Q/DQ"
    return "at load" if integer else ""


def _granularity(graph: OnnxGraph, node: NodeProto, weight: Weight) -> str:
    """Return `tensor`, `channel` or `group 32`, from the constant scales of a weight; empty when it has none.

    A weight with integer group scales is per-group too, although its float scales are per-channel.
    """
    if node.op_type == PACKED:
        return f"group {attribute(node, 'block_size', 0)}"
    dequantizing = [one for one in weight.chain if one.op_type in DEQUANTIZING]
    if dequantizing and attribute(dequantizing[-1], "block_size", 0):
        return f"group {attribute(dequantizing[-1], 'block_size', 0)}"
    if (group_scales := integer_group_scales(graph, weight)) is not None:
        return f"group {prod(weight.tensor.dims) // max(prod(group_scales.tensor.dims), 1)}"
    name = optional_input(*((dequantizing[-1], 1) if dequantizing else (node, OPERANDS[node.op_type].scale)))
    scale = find_weight(graph, name) if name else _scale_after(graph, node)
    if scale is None:
        return ""
    return "tensor" if len(scale.tensor.dims) == 0 or list(scale.tensor.dims) == [1] else "channel"


def _scale_after(graph: OnnxGraph, node: NodeProto) -> Weight | None:
    """Return the weight scales that are applied to the integer sums of a node: after a Cast, times the input scale."""
    cast = graph.only_consumer(node)
    mul = graph.only_consumer(cast) if cast is not None and cast.op_type == "Cast" else None
    if mul is None or mul.op_type != "Mul":
        return None
    factors = [graph.producers[name] for name in mul.input if name in graph.producers]
    products = [one for one in factors if one.op_type == "Mul"]
    found = (find_weight(graph, name) for product in products for name in product.input)
    return next((one for one in found if one is not None), None)


def _fits(matrix: WeightMatrix, weight: Weight, bits: int) -> bool:
    """Return whether the integers fit into a number of bits, signed or unsigned as their type."""
    if matrix.values.size == 0:
        return True
    least, largest = int(matrix.values.min()), int(matrix.values.max())
    if container(weight).startswith("U"):
        return least >= 0 and largest <= 2**bits - 1
    return bool(-(2 ** max(bits - 1, 0)) <= least and largest < 2 ** max(bits - 1, 0))


def _check_bits(graph: OnnxGraph, layer: Layer, noted: Annotation, weight: Weight) -> Iterator[Violation]:
    bits = noted.weight_bits
    if bits is not None and not 1 <= bits <= 64:
        yield Violation(layer.name, "annotated weight_bits are from 1 to 64", f"weight_bits {bits}")
    elif bits is not None and layer.type != PACKED and layer.int_min is None and weight_bits(graph, weight) > bits:
        yield Violation(layer.name, f"{bits}-bit weights", f"stored as {layer.container}")
    elif bits is not None and layer.int_min is not None and layer.int_max is not None and layer.type != PACKED:
        # Per-group weights are dequantized to floats or INT8 before the GEMM, so their range need not be symmetric.
        low, high = int(not layer.granularity.startswith("group")) - 2 ** (bits - 1), 2 ** (bits - 1) - 1
        low, high = (0, 2**bits - 1) if layer.container.startswith("U") else (low, high)
        if layer.int_min < low or layer.int_max > high:
            yield Violation(layer.name, f"{bits}-bit weights, integers from {low} to {high}",
                            f"integers from {layer.int_min} to {layer.int_max}")  # fmt: skip
    if (noted.format == "fp8") != layer.float8:
        yield Violation(layer.name, f"{noted.format or 'integer or float'} weights", f"stored as {layer.container}")
    if noted.activation_bits is not None and layer.activation_bits > noted.activation_bits:
        yield Violation(layer.name, f"{noted.activation_bits}-bit input", f"{layer.activation_bits} bits")


def _check_pattern(layer: Layer, noted: Annotation, matrix: WeightMatrix) -> Iterator[Violation]:
    claimed = noted.sparsity
    if pattern := parse_pattern(claimed):
        accepted = {claimed, PAIRS} if claimed == TWO_FOUR and layer.weight_bits <= 4 else {claimed}
        wrong, runs = runs_too_dense(matrix.zeros, claimed)
        rest = layer.reduction % pattern.span
        if (wrong or rest) and not accepted.intersection(layer.patterns):
            found = (
                f"{wrong} of {runs} runs have too few zeros"
                if runs and wrong
                else f"the reduction of {layer.reduction} is not a multiple of {pattern.span}"
            )
            yield Violation(layer.name, f"{claimed} weights", found)
    elif claimed.startswith(UNSTRUCTURED):
        sparsity = _sparsity(claimed)
        if sparsity is None or layer.zeros < zeros(layer.weights, sparsity):
            found = f"{layer.zeros / max(layer.weights, 1):.1%} of its weights are zero"
            yield Violation(layer.name, f"{claimed} weights", found)
    elif claimed:
        yield Violation(layer.name, f"'{claimed}' weights", "an unknown pattern")


def _sparsity(pattern: str) -> float | None:
    """Return the fraction of zeros that an unstructured pattern names; None when it is not in [0, 1)."""
    try:
        sparsity = float(pattern.removeprefix(UNSTRUCTURED))
    except ValueError:
        return None
    return sparsity if 0 <= sparsity < 1 else None
