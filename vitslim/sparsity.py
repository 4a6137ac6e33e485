"""What a sparsity pattern is worth: bytes of a sparse weight and its bit operations. Numbers only, no tensors.

Patterns: `2:4`, which sparse tensor cores read; `2:4-pairs`, which they read at INT4, two of every four adjacent pairs;
another `N:M`; and `unstructured:0.5`, single weights of which this fraction is zero, kept as compressed sparse rows
(CSR).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil, floor, log2

TWO_FOUR = "2:4"
PAIRS = "2:4-pairs"
PAIR_BITS = 4
"""No device reads pairs of wider weights."""
UNSTRUCTURED = "unstructured:"
GROUPED = re.compile(r"([1-9]\d?):([1-9]\d?)")
"""`N:M`."""

TWO_FOUR_BITS = {4: 2.5, 8: 5.0, 16: 9.0, 32: 17.0}
"""Bits an original weight takes on a device that stores 2:4 weights with 2-bit indices (specs, section 3.2)."""

NARROW_INDEX_BELOW = 2**16
"""Rows shorter than this have 16-bit column indices, longer ones 32-bit ones."""
POINTER_BYTES = 4
"""Where a row begins, as int32."""


@dataclass(frozen=True)
class Pattern:
    """Of each `group` units of `width` adjacent weights `kept` stay."""

    kept: int
    group: int
    width: int = 1

    @property
    def span(self) -> int:
        """Weights of one group."""
        return self.group * self.width


def parse_pattern(name: str) -> Pattern | None:
    """`2:4`, `2:4-pairs` or another `N:M` with N below M; None for anything else."""
    width = 2 if name == PAIRS else 1
    found = GROUPED.fullmatch(TWO_FOUR if name == PAIRS else name)
    if found is None or int(found[1]) >= int(found[2]):
        return None
    return Pattern(int(found[1]), int(found[2]), width)


def unstructured_pattern(sparsity: float) -> str:
    """The pattern of single weights of which this fraction is zero: `unstructured:0.5`."""
    return f"{UNSTRUCTURED}{sparsity!r}"


def zeros(count: int, sparsity: float) -> int:
    """How many of `count` weights go at a sparsity in [0, 1): never more than the fraction says."""
    return floor(count * sparsity + 1e-9)


def csr_bytes(rows: int, columns: int, kept: int, value_bits: int) -> int:
    """Bytes of a matrix (rows, columns) with `kept` weights in CSR: values, column indices, row pointers."""
    index_bytes = 2 if columns < NARROW_INDEX_BELOW else 4
    return -(-kept * value_bits // 8) + kept * index_bytes + (rows + 1) * POINTER_BYTES


def device_bytes(pattern: str, rows: int, columns: int, bits: int) -> float:
    """Bytes of a weight (rows, columns) of `bits` each on a device that stores the pattern, or dense if that is less.

    A 2:4 weight of a width without a sparse format raises KeyError.
    """
    count = rows * columns
    if pattern == PAIRS and bits > PAIR_BITS:
        return count * bits / 8
    if pattern in {TWO_FOUR, PAIRS}:
        return count * TWO_FOUR_BITS[bits] / 8
    if found := parse_pattern(pattern):
        return min(count * bits, count * found.kept / found.group * (bits + ceil(log2(found.group)))) / 8
    sparsity = float(pattern.removeprefix(UNSTRUCTURED))
    return min(count * bits / 8, csr_bytes(rows, columns, count - zeros(count, sparsity), bits))


def skips_products(pattern: str, bits: int) -> bool:
    """Whether hardware skips the multiplications by zero, which halves the BOPs: of 2:4 weights only, at these bits."""
    return pattern == TWO_FOUR or (pattern == PAIRS and bits <= PAIR_BITS)
