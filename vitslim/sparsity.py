"""Sparsity patterns: their names, the bytes of a sparse weight, and checks of stored weights. No torch.

Patterns: `2:4`, which sparse tensor cores read; `2:4-pairs`, which they read at INT4: two of every four adjacent pairs
are zero; another `N:M`; and `unstructured:0.5`, a fraction of single weights that are zero, stored as compressed sparse
rows (CSR).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil, floor, log2

import numpy as np
import numpy.typing as npt

TWO_FOUR = "2:4"
PAIRS = "2:4-pairs"
PAIR_BITS = 4
"""Bits up to which devices read `2:4-pairs`: those of weights in storage, those of both operands in a GEMM."""
UNSTRUCTURED = "unstructured:"
GROUPED = re.compile(r"([1-9]\d?):([1-9]\d?)")
"""`N:M`."""

INDEX_BITS = 2
"""Bits that a device stores with each kept weight of `2:4`, or with each kept pair."""

NARROW_INDEX_BELOW = 2**16
"""Shorter rows have 16-bit column indices, longer rows 32-bit indices."""
POINTER_BYTES = 4
"""Bytes of a row pointer (int32)."""


@dataclass(frozen=True)
class Pattern:
    """An N:M pattern: `kept` of each `group` units stay, a unit being `width` adjacent weights."""

    kept: int
    group: int
    width: int = 1

    @property
    def span(self) -> int:
        """Number of weights in a group."""
        return self.group * self.width


def parse_pattern(name: str) -> Pattern | None:
    """Parse `2:4`, `2:4-pairs` or another `N:M` with N below M; None for any other name."""
    width = 2 if name == PAIRS else 1
    found = GROUPED.fullmatch(TWO_FOUR if name == PAIRS else name)
    if found is None or int(found[1]) >= int(found[2]):
        return None
    return Pattern(int(found[1]), int(found[2]), width)


def unstructured_pattern(sparsity: float) -> str:
    """Name of the pattern with this fraction of zeros: `unstructured:0.5`."""
    return f"{UNSTRUCTURED}{sparsity!r}"


def zeros(count: int, sparsity: float) -> int:
    """Number of zeros among `count` weights at a sparsity in [0, 1), rounded down."""
    return floor(count * sparsity + 1e-9)


def csr_bytes(rows: int, columns: int, kept: int, value_bits: int) -> int:
    """Bytes of a matrix (rows, columns) with `kept` nonzero weights in CSR: values, column indices and row pointers."""
    index_bytes = 2 if columns < NARROW_INDEX_BELOW else 4
    return -(-kept * value_bits // 8) + kept * index_bytes + (rows + 1) * POINTER_BYTES


def device_bytes(pattern: str, rows: int, columns: int, bits: int) -> float:
    """Bytes of a weight (rows, columns) of `bits` on a device that stores the pattern, or dense if that is smaller."""
    count = rows * columns
    if pattern == PAIRS and bits > PAIR_BITS:
        return count * bits / 8
    if pattern in {TWO_FOUR, PAIRS}:
        return count * two_four_bits(pattern, bits) / 8
    if found := parse_pattern(pattern):
        return min(count * bits, count * found.kept / found.group * (bits + ceil(log2(found.group)))) / 8
    sparsity = float(pattern.removeprefix(UNSTRUCTURED))
    return min(count * bits / 8, csr_bytes(rows, columns, count - zeros(count, sparsity), bits))


def two_four_bits(pattern: str, bits: int) -> float:
    """Bits that a device stores for each weight of `bits`, zeros included, in `2:4` or `2:4-pairs`."""
    return bits / 2 + INDEX_BITS / (4 if pattern == PAIRS else 2)


def skips_multiplications(pattern: str, bits: int) -> bool:
    """Whether hardware skips multiplications by zero, which halves the BOPs.

    bits: of the wider operand, in which the GEMM computes. Tensor cores skip pairs at four bits, and 2:4 above.
    """
    return pattern == (PAIRS if bits <= PAIR_BITS else TWO_FOUR)


def is_two_four(zeros: npt.NDArray[np.bool_], axis: int = -1) -> bool:
    """Whether each group of four along `axis` of a mask of zeros has at least two zeros.

    `axis` is the reduction of a weight. False for a length that is zero or not a multiple of four.
    """
    moved = np.moveaxis(zeros, axis, -1)
    if moved.size == 0 or moved.shape[-1] % 4:
        return False
    return bool((moved.reshape(-1, 4).sum(axis=1) >= 2).all())
