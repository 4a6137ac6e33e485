"""Constant operands of GEMMs: their initializer, bit width, zero point, and 2:4 pattern."""

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
from vitslim.units import INTEGER_BITS_MAX
from vitslim.workload.onnx_graph import TRANSPARENT, OnnxGraph, attribute, integers

T = TypeVar("T", bound=np.generic)

CONSTANT_CHAIN = TRANSPARENT | {"DequantizeLinear", "QuantizeLinear"}
DEQUANTIZING = {"DequantizeLinear", "QuantizeLinear", "Mul"}
"""Operators in the chain of a weight whose second input is a scale."""


@dataclass(frozen=True)
class Weight:
    """A constant operand: its initializer, and the nodes from the initializer to the GEMM."""

    tensor: TensorProto
    chain: tuple[NodeProto, ...]

    @property
    def bits(self) -> int:
        """Bits of the initializer's type."""
        return element_bits(self.tensor.data_type)


def container(weight: Weight) -> str:
    """Return the ONNX type of the initializer, such as `INT8`."""
    return str(TensorProto.DataType.Name(weight.tensor.data_type))


def element_bits(element: int) -> int:
    """Return the bits of an ONNX element type: 32 for FLOAT, 4 for INT4."""
    name = TensorProto.DataType.Name(element)
    fixed = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8}
    digits = re.search(r"\d+", name)
    return fixed[name] if name in fixed else int(digits.group()) if digits else 0


def find_weight(graph: OnnxGraph, value: str) -> Weight | None:
    """Return the weight that a value comes from through Q/DQ, casts, scales and transposes; None for an activation."""
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


def integer_group_scales(graph: OnnxGraph, weight: Weight) -> Weight | None:
    """Return the integer group scales of a weight (QServe, Lin et al., 2024); None when it has none."""
    factors = (find_weight(graph, node.input[1]) for node in weight.chain if node.op_type == "Mul")
    return next((one for one in factors if one is not None and one.bits <= INTEGER_BITS_MAX), None)


def multiplies_by_scales(graph: OnnxGraph, node: NodeProto) -> bool:
    """Return whether a node multiplies constant integers by their scales.

    Such a Mul follows a Cast in place of DequantizeLinear, or applies integer group scales.
    """
    if node.op_type != "Mul" or graph.constant.isdisjoint(node.output):
        return False
    value = node.input[0]
    while value in graph.producers and graph.producers[value].op_type in {"Cast", "Reshape", "Mul"}:
        value = graph.producers[value].input[0]
    stored = graph.initializers.get(value)
    return stored is not None and element_bits(stored.data_type) <= INTEGER_BITS_MAX


def weight_bits(graph: OnnxGraph, weight: Weight) -> int:
    """Return the bits of a weight: of its initializer, or of its QuantizeLinear where that is not folded."""
    quantized = (graph.types[node.output[0]] for node in weight.chain
                 if node.op_type == "QuantizeLinear" and node.output[0] in graph.types)  # fmt: skip
    return min([weight.bits, *(element_bits(kind.element) for kind in quantized)])


def sparsity(graph: OnnxGraph, weight: Weight, axis: int | None, activation_bits: int) -> str:
    """Return `2:4` when tensor cores skip half of the multiplications, else an empty string.

    Two of every four weights along `axis`, the reduction dimension of the operand, are zero; where both operands have
    at most four bits, two of every four adjacent pairs. None is a convolution, whose reduction runs over input channels
    and kernel positions, flattened as stored.
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
    if max(weight_bits(graph, weight), activation_bits) > PAIR_BITS:
        return TWO_FOUR if is_two_four(zeros, axis) else ""
    if zeros.shape[axis] % 2:
        return ""
    rows = np.moveaxis(zeros, axis, -1).reshape(-1, zeros.shape[axis])
    return TWO_FOUR if is_two_four(all_zero_runs(rows, 2), 1) else ""


def stored_values(tensor: TensorProto) -> npt.NDArray[Any]:
    """Return the values of an initializer. Raises InputError when their number does not match its shape."""
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise InputError(f"the number of values of '{tensor.name}' does not match its shape {list(tensor.dims)}",
                         "the file is damaged: export it again") from error  # fmt: skip


def all_zero_runs(zeros: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    """Return for each run of `size` columns of a mask of zeros (n, m) whether it is all zero: (n, m / size)."""
    return np.asarray(zeros.reshape(len(zeros), -1, size).all(axis=2))


def rearranged(graph: OnnxGraph, node: NodeProto, array: npt.NDArray[T]) -> npt.NDArray[T]:
    """Apply the transpose or reshape of a node in the chain of a weight; other nodes keep the shape."""
    if node.op_type == "Transpose":
        return np.transpose(array, integers(node, "perm") or None)
    shape = graph.types[node.output[0]].shape if node.output[0] in graph.types else array.shape
    return array.reshape(shape) if prod(shape) == array.size else array


def zero_point(graph: OnnxGraph, weight: Weight) -> npt.NDArray[np.int64]:
    """Return the zero point of a weight's DequantizeLinear, broadcastable against the initializer; 0 without one."""
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
    group, size = attribute(node, "block_size", 0), weight.tensor.dims[axis] if point.ndim else 0
    return np.repeat(point, min(group, size), axis).take(range(size), axis) if group > 0 and point.ndim else point
