"""Layers of an ONNX file: what their stored numbers are, and whether they keep what is noted about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from onnx import NodeProto

from vitslim.errors import InputError
from vitslim.graph.sparse import PAIRS, TWO_FOUR, UNSTRUCTURED, parse_pattern, zeros
from vitslim.workload.annotations import find_annotation, node_annotation
from vitslim.workload.facts import INTEGER_BITS_MAX, Annotation, BrokenPromise, Layer
from vitslim.workload.input_codes import input_bits
from vitslim.workload.onnx_graph import OnnxGraph, attribute, layer_of
from vitslim.workload.weight_codes import (
    FLOAT_OPERATORS,
    OPERANDS,
    PACKED,
    Codes,
    container,
    optional_input,
    patterns,
    read_codes,
    runs_too_dense,
)
from vitslim.workload.weights import DEQUANTIZING, Weight, block_numbers, find_weight, weight_bits
from vitslim.workload.whole import tensor_bytes


def read_layers(graph: OnnxGraph, listed: Sequence[Annotation]) -> tuple[tuple[Layer, ...], tuple[BrokenPromise, ...]]:
    """Every product with a weight of two dimensions or more, in graph order, and the promises that its numbers break.

    Raises InputError where weight, zero points and product do not go together.
    """
    layers, broken = [], []
    for node in graph.nodes:
        found = _weight_of(graph, node)
        if found is None:
            continue
        weight, left = found
        try:
            codes = read_codes(graph, node, weight, left)
        except (ValueError, IndexError) as error:
            shown = f"the weight '{weight.tensor.name}' of {node.op_type} '{node.name}'"
            raise InputError(f"{shown} cannot be read: {error}", "the file is damaged: write it again") from error
        annotation = node_annotation(node) or find_annotation(
            listed, layer_of(node, weight.tensor.name), weight.tensor.name
        )
        layer = _layer(graph, node, (weight, left), codes, annotation)
        layers.append(layer)
        if annotation is not None:
            broken += [*_broken_pattern(layer, annotation, codes), *_broken_bits(graph, layer, annotation, weight)]
    return tuple(layers), tuple(broken)


def activation_products(graph: OnnxGraph) -> tuple[str, ...]:
    """Nodes that multiply two activations, both dequantized."""
    return tuple(
        node.name for node in graph.nodes
        if node.op_type in {"MatMul", "Gemm"} and _weight_of(graph, node) is None
        and all(input_bits(graph, node, name) <= INTEGER_BITS_MAX for name in node.input[:2])
    )  # fmt: skip


def _weight_of(graph: OnnxGraph, node: NodeProto) -> tuple[Weight, bool] | None:
    """The weight of a product, and whether it is the left operand."""
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
    graph: OnnxGraph, node: NodeProto, operand: tuple[Weight, bool], codes: Codes, annotation: Annotation | None
) -> Layer:
    (weight, left), operands = operand, OPERANDS[node.op_type]
    found = attribute(node, "bits", 4) if node.op_type == PACKED else weight_bits(graph, weight)
    noted = annotation.weight_bits if annotation else None
    bits = noted if noted is not None and noted < found and codes.integer and _within(codes, weight, noted) else found
    return Layer(
        name=layer_of(node, weight.tensor.name), node=node.name, type=node.op_type, weight=weight.tensor.name,
        outputs=codes.matrix.shape[0], reduction=codes.matrix.shape[1],
        container=container(weight), weight_bits=bits,
        activation_bits=input_bits(graph, node, node.input[operands.weight if left else operands.data]),
        granularity=_granularity(graph, node, weight),
        code_min=codes.limits[0] if codes.limits else None, code_max=codes.limits[1] if codes.limits else None,
        pair_max=codes.pair_max, zeros=int(np.count_nonzero(codes.zeros)), patterns=patterns(codes.zeros),
        annotation=annotation,
        quantized_by=_quantized_by(node, weight, codes.integer),
        stored_bytes=tensor_bytes(weight.tensor),
    )  # fmt: skip


def _quantized_by(node: NodeProto, weight: Weight, integer: bool) -> str:
    steps = {step.op_type for step in weight.chain}
    if node.op_type not in FLOAT_OPERATORS:
        return "integer" if integer or steps & DEQUANTIZING else ""
    if steps & {"DequantizeLinear", "QuantizeLinear"}:
        return "Q/DQ"
    return "at load" if integer else ""


def _granularity(graph: OnnxGraph, node: NodeProto, weight: Weight) -> str:
    """`tensor`, `channel` or `group 32`, by the constant scales of a weight; empty if the file has none for it.

    Groups may have integer scales beside the float scales of channels.
    """
    if node.op_type == PACKED:
        return f"group {attribute(node, 'block_size', 0)}"
    steps = [step for step in weight.chain if step.op_type in DEQUANTIZING]
    if steps and attribute(steps[-1], "block_size", 0):
        return f"group {attribute(steps[-1], 'block_size', 0)}"
    if (numbers := block_numbers(graph, weight)) is not None:
        return f"group {prod(weight.tensor.dims) // max(prod(numbers.tensor.dims), 1)}"
    name = optional_input(*((steps[-1], 1) if steps else (node, OPERANDS[node.op_type].scale)))
    scale = find_weight(graph, name) if name else None
    if scale is None:
        return ""
    return "tensor" if len(scale.tensor.dims) == 0 or list(scale.tensor.dims) == [1] else "channel"


def _within(codes: Codes, weight: Weight, bits: int) -> bool:
    """Whether codes keep within a number of bits, from zero on when unsigned."""
    if codes.matrix.size == 0:
        return True
    least, largest = int(codes.matrix.min()), int(codes.matrix.max())
    if container(weight).startswith("U"):
        return least >= 0 and largest <= 2**bits - 1
    return bool(-(2 ** max(bits - 1, 0)) <= least and largest < 2 ** max(bits - 1, 0))


def _broken_bits(graph: OnnxGraph, layer: Layer, noted: Annotation, weight: Weight) -> Iterator[BrokenPromise]:
    bits = noted.weight_bits
    if bits is not None and not 1 <= bits <= 64:
        yield BrokenPromise(layer.name, "annotated bits are a width", f"weights of {bits} bits")
    elif bits is not None and layer.type != PACKED and layer.code_min is None and weight_bits(graph, weight) > bits:
        yield BrokenPromise(layer.name, f"weights of {bits} bits", f"stored as {layer.container}")
    elif bits is not None and layer.code_min is not None and layer.code_max is not None and layer.type != PACKED:
        # Group-wise weights are multiplied as floats: their range need not be symmetric.
        low, high = int(not layer.granularity.startswith("group")) - 2 ** (bits - 1), 2 ** (bits - 1) - 1
        low, high = (0, 2**bits - 1) if layer.container.startswith("U") else (low, high)
        if layer.code_min < low or layer.code_max > high:
            yield BrokenPromise(layer.name, f"weights of {bits} bits, integers from {low} to {high}",
                                f"integers from {layer.code_min} to {layer.code_max}")  # fmt: skip
    if noted.activation_bits is not None and layer.activation_bits > noted.activation_bits:
        yield BrokenPromise(layer.name, f"activations of {noted.activation_bits} bits", f"{layer.activation_bits} bits")


def _broken_pattern(layer: Layer, noted: Annotation, codes: Codes) -> Iterator[BrokenPromise]:
    wanted = noted.sparsity
    if pattern := parse_pattern(wanted):
        accepted = {wanted, PAIRS} if wanted == TWO_FOUR and layer.weight_bits <= 4 else {wanted}
        wrong, runs = runs_too_dense(codes.zeros, wanted)
        rest = layer.reduction % pattern.span
        if (wrong or rest) and not accepted.intersection(layer.patterns):
            found = (
                f"{wrong} of {runs} runs have too few zeros" if runs and wrong else f"{rest} weights of a row left over"
            )
            yield BrokenPromise(layer.name, f"{wanted} weights", found)
    elif wanted.startswith(UNSTRUCTURED):
        share = _share(wanted)
        if share is None or layer.zeros < zeros(layer.weights, share):
            found = f"{layer.zeros / max(layer.weights, 1):.1%} of its weights are zero"
            yield BrokenPromise(layer.name, f"{wanted} weights", found)
    elif wanted:
        yield BrokenPromise(layer.name, f"'{wanted}' weights", "a pattern that vitslim does not know")


def _share(pattern: str) -> float | None:
    try:
        share = float(pattern.removeprefix(UNSTRUCTURED))
    except ValueError:
        return None
    return share if 0 <= share < 1 else None
