"""What is known about the operands of a matrix product: bit widths, and the 2:4 pattern in the stored integers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, numpy_helper

from vitslim.errors import InputError
from vitslim.sparsity import PAIR_BITS, TWO_FOUR, is_two_four
from vitslim.workload.facts import INTEGER_BITS_MAX
from vitslim.workload.onnx_graph import TRANSPARENT, OnnxGraph, attribute, integers

T = TypeVar("T", bound=np.generic)

CONSTANT_CHAIN = TRANSPARENT | {"DequantizeLinear", "QuantizeLinear"}
DEQUANTIZING = {"DequantizeLinear", "QuantizeLinear", "Mul"}
"""In the chain of a weight: nodes whose second input holds scales."""
ACTIVATION_CHAIN = TRANSPARENT | {"Slice", "Split", "Gather", "Expand", "Pad", "Concat"}


@dataclass(frozen=True)
class Weight:
    """A constant operand: its initializer, and the nodes between that and the product, the initializer's first."""

    tensor: TensorProto
    chain: tuple[NodeProto, ...]

    @property
    def bits(self) -> int:
        """Bits of the narrowest type that the weight passes through."""
        return element_bits(self.tensor.data_type)


def element_bits(element: int) -> int:
    """Bits of an ONNX element type: 32 for FLOAT, 4 for INT4."""
    name = TensorProto.DataType.Name(element)
    fixed = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8}
    digits = re.search(r"\d+", name)
    return fixed[name] if name in fixed else int(digits.group()) if digits else 0


def find_weight(graph: OnnxGraph, value: str) -> Weight | None:
    """The initializer behind a value, through Q/DQ, casts, their scales and transposes; None for an activation."""
    chain: list[NodeProto] = []
    while value not in graph.initializers:
        node = graph.producers.get(value)
        if node is None or value not in graph.constant:
            return None
        if node.op_type not in CONSTANT_CHAIN and not multiplies_by_scales(graph, node):
            return None
        chain.append(node)
        value = node.input[0]
    return Weight(graph.initializers[value], tuple(reversed(chain)))


def block_numbers(graph: OnnxGraph, weight: Weight) -> Weight | None:
    """The whole numbers that codes of blocks are multiplied by, where a weight has some."""
    factors = (find_weight(graph, step.input[1]) for step in weight.chain if step.op_type == "Mul")
    return next((one for one in factors if one is not None and one.bits <= INTEGER_BITS_MAX), None)


def multiplies_by_scales(graph: OnnxGraph, node: NodeProto) -> bool:
    """Whether a node multiplies integers, cast to floats, by their scales: DequantizeLinear in two nodes, or codes of
    blocks by their whole numbers."""
    if node.op_type != "Mul" or graph.constant.isdisjoint(node.output):
        return False
    value = node.input[0]
    while value in graph.producers and graph.producers[value].op_type in {"Cast", "Reshape", "Mul"}:
        value = graph.producers[value].input[0]
    stored = graph.initializers.get(value)
    return stored is not None and element_bits(stored.data_type) <= INTEGER_BITS_MAX


def weight_bits(graph: OnnxGraph, weight: Weight) -> int:
    """Bits of a weight: of its initializer, or of the quantized values when Q is still in the graph."""
    quantized = (graph.types[node.output[0]] for node in weight.chain
                 if node.op_type == "QuantizeLinear" and node.output[0] in graph.types)  # fmt: skip
    return min([weight.bits, *(element_bits(kind.element) for kind in quantized)])


def activation_bits(graph: OnnxGraph, value: str) -> int:
    """Bits of an activation: of the integers in front of its DequantizeLinear, else of its own type."""
    own = graph.types.get(value)
    while value in graph.producers:
        node = graph.producers[value]
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.types:
            return element_bits(graph.types[node.input[0]].element)
        if node.op_type not in ACTIVATION_CHAIN:
            break
        value = node.input[0]
    return element_bits(own.element) if own else 0


def sparsity(graph: OnnxGraph, weight: Weight, axis: int | None) -> str:
    """`2:4` when every run of four weights along `axis`, the reduction dimension of the operand, holds two zeros.

    Of weights of four bits also when of every four adjacent pairs two are zero, which is what tensor cores read there.

    None is a convolution, whose reduction runs over input channels and kernel, flattened in the order they are stored.
    """
    stored = stored_values(weight.tensor)
    if stored.ndim < 2:
        return ""
    zeros = np.equal(stored, 0) if stored.dtype.kind == "f" else np.equal(stored, zero_point(graph, weight))
    if 2 * int(np.count_nonzero(zeros)) < zeros.size:
        return ""
    for node in weight.chain:
        zeros = rearranged(graph, node, zeros)
    if axis is None:
        zeros, axis = zeros.reshape(len(zeros), -1), 1
    if is_two_four(zeros, axis):
        return TWO_FOUR
    if weight_bits(graph, weight) > PAIR_BITS or zeros.shape[axis] % 2:
        return ""
    rows = np.moveaxis(zeros, axis, -1).reshape(-1, zeros.shape[axis])
    return TWO_FOUR if is_two_four(whole_groups(rows, 2), 1) else ""


def stored_values(tensor: TensorProto) -> npt.NDArray[Any]:
    """The values of an initializer. Raises InputError when they do not fit its shape."""
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise InputError(f"the values of '{tensor.name}' do not fit its shape {list(tensor.dims)}",
                         "the file is damaged: write it again") from error  # fmt: skip


def whole_groups(zeros: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    """Whether all of so many neighbors along the last axis of a matrix are zero."""
    return np.asarray(zeros.reshape(len(zeros), -1, size).all(axis=2))


def rearranged(graph: OnnxGraph, node: NodeProto, array: npt.NDArray[T]) -> npt.NDArray[T]:
    """What a node between an initializer and its product makes of the places of the values."""
    if node.op_type == "Transpose":
        return np.transpose(array, integers(node, "perm") or None)
    shape = graph.types[node.output[0]].shape if node.output[0] in graph.types else array.shape
    return array.reshape(shape) if prod(shape) == array.size else array


def zero_point(graph: OnnxGraph, weight: Weight) -> npt.NDArray[np.int64]:
    """Zero point of the weight's DequantizeLinear, shaped to broadcast against the initializer; 0 when it has none."""
    none = np.zeros((), np.int64)
    node = next((n for n in weight.chain if n.op_type == "DequantizeLinear"), None)
    found = find_weight(graph, node.input[2]) if node is not None and len(node.input) > 2 else None
    if node is None or found is None:
        return none
    point = stored_values(found.tensor).astype(np.int64)
    if not point.any():
        return none
    if point.ndim == 1 and point.size > 1:
        shape = [1] * len(weight.tensor.dims)
        shape[attribute(node, "axis", 1)] = point.size
        return point.reshape(shape)
    axis = attribute(node, "axis", 1)
    block, size = attribute(node, "block_size", 0), weight.tensor.dims[axis] if point.ndim else 0
    return np.repeat(point, min(block, size), axis).take(range(size), axis) if block > 0 and point.ndim else point
