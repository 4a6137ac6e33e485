"""Read a stored weight as a matrix (outputs, reduction), independent of its operator and storage format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, numpy_helper

from vitslim.sparsity import PAIRS, TWO_FOUR, is_two_four, parse_pattern
from vitslim.units import INTEGER_BITS_MAX
from vitslim.workload.onnx_graph import OnnxGraph, attribute, optional_input
from vitslim.workload.weights import (
    T,
    Weight,
    all_zero_runs,
    container,
    element_bits,
    find_weight,
    integer_group_scales,
    rearranged,
    zero_point,
)

PACKED = "MatMulNBits"
"""Operator whose weights of 2, 4 or 8 bits are packed as (outputs, groups, bytes of a group), lowest bits first."""
MATRIX_DIMS = 2


@dataclass(frozen=True)
class Operands:
    """Indices of the inputs of an operator; None where it has no such input."""

    data: int
    weight: int
    scale: int | None = None
    zero_point: int | None = None


OPERANDS = {
    "MatMul": Operands(0, 1), "Gemm": Operands(0, 1), "Conv": Operands(0, 1),
    "FusedMatMul": Operands(0, 1), "FusedGemm": Operands(0, 1), "FusedConv": Operands(0, 1),
    "MatMulInteger": Operands(0, 1, None, 3), "ConvInteger": Operands(0, 1, None, 3),
    "QLinearMatMul": Operands(0, 3, 4, 5), "QLinearConv": Operands(0, 3, 4, 5), "QGemm": Operands(0, 3, 4, 5),
    "MatMulIntegerToFloat": Operands(0, 1, 3, 5), "DynamicQuantizeMatMul": Operands(0, 1, 2, 3),
    PACKED: Operands(0, 1, 2, 3),
}  # fmt: skip
"""Matmuls and convolutions of standard ONNX and of ONNX Runtime."""
FLOAT_OPERATORS = frozenset({"MatMul", "Gemm", "Conv", "FusedMatMul", "FusedGemm", "FusedConv"})


@dataclass(frozen=True)
class WeightMatrix:
    """The values of one weight."""

    values: npt.NDArray[np.float32] | npt.NDArray[np.int64]
    """(outputs, reduction): float weights, or integers; the zero point is subtracted where the type is signed."""
    zeros: npt.NDArray[np.bool_]
    """(outputs, reduction): True where a weight is zero, which is an integer equal to the zero point."""
    integer: bool
    limits: tuple[int, int] | None = None
    """Smallest and largest integer, less the zero point unless that is per-group; None for floats."""
    pair_sum_max: int = 0
    """Largest sum of two integers of one sign adjacent along the reduction, after integer group scales."""


def read_weight_matrix(graph: OnnxGraph, node: NodeProto, weight: Weight, left: bool) -> WeightMatrix:
    """Return the weight of a node as a matrix; `left` when it is the left operand of a MatMul.

    Raises ValueError or IndexError when the shapes of weight, zero points and operator do not match.
    """
    if node.op_type == PACKED:
        packed, zero = _unpacked(graph, node, weight)
        return WeightMatrix(packed - zero, packed == zero, True, _limits(packed - zero))
    stored = numpy_helper.to_array(weight.tensor)
    integer = element_bits(weight.tensor.data_type) <= INTEGER_BITS_MAX and "FLOAT" not in container(weight)
    points: npt.NDArray[np.int64] = np.zeros((), np.int64)
    stored = stored.astype(np.int64 if integer else np.float32)
    if integer:
        points = np.broadcast_to(zero_point(graph, weight), stored.shape)
        points = points + _own_zero_point(graph, node, stored.ndim)
    shifted = stored - points if integer and not container(weight).startswith("U") else stored
    zeros = np.equal(stored, points)
    matrix, at_zero = (_as_matrix(graph, node, weight, array, left) for array in (shifted, zeros))
    if not integer:
        return WeightMatrix(matrix, at_zero, integer)
    multiplied = shifted * _group_scales(graph, weight, shifted)
    pairs = _pair_sum_max(_as_matrix(graph, node, weight, multiplied, left))
    per_group = any(attribute(one, "block_size", 0) for one in weight.chain)
    return WeightMatrix(matrix, at_zero, integer, _limits(stored if per_group else shifted), pairs)


def _limits(stored: npt.NDArray[np.generic]) -> tuple[int, int] | None:
    return (int(stored.min()), int(stored.max())) if stored.size else None


def _group_scales(graph: OnnxGraph, weight: Weight, integers: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Return the integer group scale of each weight, in the shape of `integers`; 1 without integer group scales."""
    found = integer_group_scales(graph, weight)
    scales = np.ones((), np.int64) if found is None else numpy_helper.to_array(found.tensor).astype(np.int64)
    return np.broadcast_to(scales, integers.shape)


def _pair_sum_max(integers: npt.NDArray[np.int64]) -> int:
    even = np.pad(integers, ((0, 0), (0, integers.shape[1] % 2)))
    pairs = even.reshape(len(even), -1, 2)
    return int(max((sign * pairs).clip(min=0).sum(axis=2).max(initial=0) for sign in (1, -1)))


def patterns(zeros: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    """Return which of `2:4` and `2:4-pairs` a mask of zeros (outputs, reduction) follows along the reduction.

    `2:4`: two of each four weights are zero. `2:4-pairs`: of each four adjacent pairs of weights, two pairs are zero.
    """
    if zeros.size == 0 or 2 * int(np.count_nonzero(zeros)) < zeros.size:
        return ()
    found = [TWO_FOUR] if is_two_four(zeros, 1) else []
    if zeros.shape[1] % 8 == 0 and is_two_four(all_zero_runs(zeros, 2), 1):
        found.append(PAIRS)
    return tuple(found)


def runs_too_dense(zeros: npt.NDArray[np.bool_], pattern: str) -> tuple[int, int]:
    """Return the number of runs of a mask of zeros that violate an N:M pattern, and the number of all whole runs."""
    found = parse_pattern(pattern)
    if found is None:
        return 0, 0
    whole = zeros[:, : zeros.shape[1] // found.span * found.span]
    runs = all_zero_runs(whole, found.width).reshape(-1, found.group)
    return int((runs.sum(axis=1) < found.group - found.kept).sum()), len(runs)


def _as_matrix(graph: OnnxGraph, node: NodeProto, weight: Weight, array: npt.NDArray[T], left: bool) -> npt.NDArray[T]:
    for one in weight.chain:
        array = rearranged(graph, one, array)
    if "Conv" in node.op_type:
        return array.reshape(len(array), -1)
    if array.ndim < MATRIX_DIMS:
        raise ValueError(f"expected a matrix, got shape {list(array.shape)}")
    by_output = left or attribute(node, "transB", 0) == 1
    array = array if by_output else np.moveaxis(array, -2, -1)
    return array.reshape(-1, array.shape[-1])


def _own_zero_point(graph: OnnxGraph, node: NodeProto, ndim: int) -> npt.NDArray[np.int64]:
    """Return the zero point that an integer operator reads as an input: per-tensor or per-channel."""
    found = find_weight(graph, optional_input(node, OPERANDS[node.op_type].zero_point))
    if found is None:
        return np.zeros((), np.int64)
    point = numpy_helper.to_array(found.tensor).astype(np.int64)
    if point.size == 1:
        return point.reshape(())
    by_output = "Conv" in node.op_type or attribute(node, "transB", 0) == 1
    return point.reshape(-1, *[1] * (ndim - 1)) if by_output else point


def _unpacked(graph: OnnxGraph, node: NodeProto, weight: Weight) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the integers (outputs, reduction) of a MatMulNBits, and zero points that broadcast against them."""
    bits, group_size = attribute(node, "bits", 4), attribute(node, "block_size", 0)
    outputs, reduction = attribute(node, "N", 0), attribute(node, "K", 0)
    if bits not in {2, 4, 8} or group_size <= 0 or outputs <= 0 or reduction <= 0:
        raise ValueError(
            "expected 2, 4 or 8 bits and positive sizes, got "
            f"bits={bits}, block_size={group_size}, N={outputs}, K={reduction}"
        )
    groups = -(-reduction // group_size)
    integers = _unpack(numpy_helper.to_array(weight.tensor), bits).reshape(outputs, groups * group_size)[:, :reduction]
    found = find_weight(graph, optional_input(node, OPERANDS[PACKED].zero_point))
    if found is None:
        return integers, np.full((), 1 << (bits - 1), np.int64)
    stored = numpy_helper.to_array(found.tensor)
    points = _unpack(stored.reshape(outputs, -1), bits) if stored.dtype == np.uint8 else stored.reshape(outputs, -1)
    return integers, np.repeat(points[:, :groups], group_size, axis=1)[:, :reduction].astype(np.int64)


def _unpack(packed: npt.NDArray[np.generic], bits: int) -> npt.NDArray[np.int64]:
    """Return the unsigned integers of `bits` bits that bytes (..., n) contain, as (..., 8 / bits * n)."""
    shifts = np.arange(0, 8, bits)
    values = (packed.astype(np.int64)[..., None] >> shifts) & ((1 << bits) - 1)
    return values.reshape(*packed.shape[:-1], -1)
