"""The numbers of a stored weight as a matrix (outputs, reduction), whatever form the file keeps them in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, numpy_helper

from vitslim.sparsity import PAIRS, TWO_FOUR, is_two_four, parse_pattern
from vitslim.workload.facts import INTEGER_BITS_MAX
from vitslim.workload.onnx_graph import OnnxGraph, attribute
from vitslim.workload.weights import (
    T,
    Weight,
    block_numbers,
    element_bits,
    find_weight,
    rearranged,
    whole_groups,
    zero_point,
)

PACKED = "MatMulNBits"
"""Stores weights of 2, 4 or 8 bits as (outputs, blocks, bytes of a block), the first weight in the lowest bits."""
MATRIX_DIMS = 2


@dataclass(frozen=True)
class Operands:
    """Which inputs of an operator are what; None where it has no such input."""

    data: int
    weight: int
    scale: int | None = None
    zero: int | None = None


OPERANDS = {
    "MatMul": Operands(0, 1), "Gemm": Operands(0, 1), "Conv": Operands(0, 1),
    "FusedMatMul": Operands(0, 1), "FusedGemm": Operands(0, 1), "FusedConv": Operands(0, 1),
    "MatMulInteger": Operands(0, 1, None, 3), "ConvInteger": Operands(0, 1, None, 3),
    "QLinearMatMul": Operands(0, 3, 4, 5), "QLinearConv": Operands(0, 3, 4, 5), "QGemm": Operands(0, 3, 4, 5),
    "MatMulIntegerToFloat": Operands(0, 1, 3, 5), "DynamicQuantizeMatMul": Operands(0, 1, 2, 3),
    PACKED: Operands(0, 1, 2, 3),
}  # fmt: skip
"""Products, of the standard and of ONNX Runtime."""
FLOAT_OPERATORS = frozenset({"MatMul", "Gemm", "Conv", "FusedMatMul", "FusedGemm", "FusedConv"})


@dataclass(frozen=True)
class Codes:
    """Numbers of one weight."""

    matrix: npt.NDArray[np.float32] | npt.NDArray[np.int64]
    """(outputs, reduction): float weights, or codes without their zero point where the type is signed."""
    zeros: npt.NDArray[np.bool_]
    """The same shape: codes at the zero point."""
    integer: bool
    limits: tuple[int, int] | None = None
    """Smallest and largest code, less its zero point but where a block has its own; None for floats."""
    pair_max: int = 0
    """Largest sum of two codes of one sign that are neighbors along the reduction, as they are multiplied."""


def optional_input(node: NodeProto, index: int | None) -> str:
    """Name of an input of a node; empty when the node goes without."""
    return node.input[index] if index is not None and index < len(node.input) else ""


def read_codes(graph: OnnxGraph, node: NodeProto, weight: Weight, left: bool) -> Codes:
    """Codes of the weight of a product; `left` when it is the left operand of a MatMul.

    Raises ValueError or IndexError where shapes of weight, zero points and product do not go together.
    """
    if node.op_type == PACKED:
        codes, zero = _unpacked(graph, node, weight)
        return Codes(codes - zero, codes == zero, True, _limits(codes - zero))
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
        return Codes(matrix, at_zero, integer)
    pairs = _pair_max(_as_matrix(graph, node, weight, shifted * _numbers(graph, weight, shifted), left))
    in_blocks = any(attribute(step, "block_size", 0) for step in weight.chain)
    return Codes(matrix, at_zero, integer, _limits(stored if in_blocks else shifted), pairs)


def _limits(stored: npt.NDArray[np.generic]) -> tuple[int, int] | None:
    return (int(stored.min()), int(stored.max())) if stored.size else None


def _numbers(graph: OnnxGraph, weight: Weight, codes: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """What each code is multiplied by before it meets the input: one where blocks have no numbers."""
    found = block_numbers(graph, weight)
    numbers = np.ones((), np.int64) if found is None else numpy_helper.to_array(found.tensor).astype(np.int64)
    return np.broadcast_to(numbers, codes.shape)


def _pair_max(codes: npt.NDArray[np.int64]) -> int:
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    pairs = even.reshape(len(even), -1, 2)
    return int(max((sign * pairs).clip(min=0).sum(axis=2).max(initial=0) for sign in (1, -1)))


def container(weight: Weight) -> str:
    """ONNX type of the initializer."""
    return str(TensorProto.DataType.Name(weight.tensor.data_type))


def patterns(zeros: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    """Which of `2:4` and `2:4-pairs` a mask of zeros (outputs, reduction) follows along the reduction.

    `2:4`: two of each four weights are zero. `2:4-pairs`: of each eight, seen as four adjacent pairs, two pairs are.
    """
    if zeros.size == 0 or 2 * int(np.count_nonzero(zeros)) < zeros.size:
        return ()
    found = [TWO_FOUR] if is_two_four(zeros, 1) else []
    if zeros.shape[1] % 8 == 0 and is_two_four(whole_groups(zeros, 2), 1):
        found.append(PAIRS)
    return tuple(found)


def runs_too_dense(zeros: npt.NDArray[np.bool_], pattern: str) -> tuple[int, int]:
    """How many runs of a mask of zeros break a pattern, and how many there are; the last columns may be left over."""
    found = parse_pattern(pattern)
    if found is None:
        return 0, 0
    whole = zeros[:, : zeros.shape[1] // found.span * found.span]
    runs = whole_groups(whole, found.width).reshape(-1, found.group)
    return int((runs.sum(axis=1) < found.group - found.kept).sum()), len(runs)


def _as_matrix(graph: OnnxGraph, node: NodeProto, weight: Weight, array: npt.NDArray[T], left: bool) -> npt.NDArray[T]:
    for step in weight.chain:
        array = rearranged(graph, step, array)
    if "Conv" in node.op_type:
        return array.reshape(len(array), -1)
    if array.ndim < MATRIX_DIMS:
        raise ValueError("it is not a matrix")
    by_output = left or attribute(node, "transB", 0) == 1
    array = array if by_output else np.moveaxis(array, -2, -1)
    return array.reshape(-1, array.shape[-1])


def _own_zero_point(graph: OnnxGraph, node: NodeProto, ndim: int) -> npt.NDArray[np.int64]:
    """Zero point that an integer operator has as an input: one, or one for each output."""
    found = find_weight(graph, optional_input(node, OPERANDS[node.op_type].zero))
    if found is None:
        return np.zeros((), np.int64)
    point = numpy_helper.to_array(found.tensor).astype(np.int64)
    if point.size == 1:
        return point.reshape(())
    by_output = "Conv" in node.op_type or attribute(node, "transB", 0) == 1
    return point.reshape(-1, *[1] * (ndim - 1)) if by_output else point


def _unpacked(graph: OnnxGraph, node: NodeProto, weight: Weight) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Codes (outputs, reduction) and zero points that broadcast against them, of a MatMulNBits."""
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 0)
    outputs, reduction = attribute(node, "N", 0), attribute(node, "K", 0)
    if bits not in {2, 4, 8} or block <= 0 or outputs <= 0 or reduction <= 0:
        raise ValueError(f"{bits} bits in blocks of {block} for {outputs} x {reduction} weights is not possible")
    blocks = -(-reduction // block)
    codes = _bits(numpy_helper.to_array(weight.tensor), bits).reshape(outputs, blocks * block)[:, :reduction]
    found = find_weight(graph, optional_input(node, OPERANDS[PACKED].zero))
    if found is None:
        return codes, np.full((), 1 << (bits - 1), np.int64)
    stored = numpy_helper.to_array(found.tensor)
    points = _bits(stored.reshape(outputs, -1), bits) if stored.dtype == np.uint8 else stored.reshape(outputs, -1)
    return codes, np.repeat(points[:, :blocks], block, axis=1)[:, :reduction].astype(np.int64)


def _bits(packed: npt.NDArray[np.generic], bits: int) -> npt.NDArray[np.int64]:
    """Numbers of so many bits out of bytes (..., n) as (..., 8 / bits * n)."""
    shifts = np.arange(0, 8, bits)
    values = (packed.astype(np.int64)[..., None] >> shifts) & ((1 << bits) - 1)
    return values.reshape(*packed.shape[:-1], -1)
