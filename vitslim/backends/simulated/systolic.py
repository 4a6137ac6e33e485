"""Compute cycles and SRAM traffic of matrix products on a systolic array: the closed form behind SCALE-Sim v3.0.0.

A product is C[M, N] = A[M, K] B[K, N], A being activations and B weights. All functions take integers or arrays of
them and work elementwise. They reproduce SCALE-Sim's compute cycles exactly; memory time is not part of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vitslim.backends.simulated.spec import Dataflow

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Size = int | Ints

KEPT, BLOCK = 2, 4
"""2:4 sparsity: two of every four weights along K stay."""


@dataclass(frozen=True)
class Array:
    """Multiply-accumulate units in a grid, and which operand they hold."""

    rows: int
    columns: int
    dataflow: Dataflow

    @property
    def macs_per_cycle(self) -> int:
        """Multiply-accumulates that all units together do in a cycle."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Traffic:
    """Words that go between SRAM and array."""

    input_reads: Ints
    weight_reads: Ints
    output_writes: Ints
    output_reads: Ints
    """Partial sums that are fetched to be added to."""

    @property
    def words(self) -> Ints:
        """All of them."""
        return self.input_reads + self.weight_reads + self.output_writes + self.output_reads


def compute_cycles(m: Size, n: Size, k: Size, array: Array, overlap: Literal["none", "double_buffer"] = "none") -> Ints:
    """Cycles of one product.

    `none`: folds run strictly one after the other, edge folds at full cost; the index of the last cycle, counted
    from 0, as SCALE-Sim prints it. `double_buffer`: the stationary operand of a fold is loaded while the fold before
    it streams (TPU-like, derived). For 2:4 weights pass `compacted_k(k, ...)` for `k`.
    """
    streamed = _mapped(m, n, k, array.dataflow)[2]
    if overlap == "double_buffer":
        return _folds(m, n, k, array) * np.maximum(streamed, array.rows) + 2 * array.rows + array.columns
    preload = 0 if array.dataflow == "os" else array.rows
    return _folds(m, n, k, array) * (preload + array.rows + array.columns + streamed - 2) - 1


def compacted_k(k: Size, mapping: Literal["layer", "row"], kept: int = KEPT, block: int = BLOCK) -> Ints:
    """Rows that K takes in a weight-stationary array when of every `block` weights along K only `kept` stay.

    `layer`: ceil(K * kept / block). `row`: every column has a count of its own, at most half of a block, so that two
    blocks share the slots of one.
    """
    if mapping == "layer":
        return _ceil_div(np.asarray(k, np.int64) * kept, block)
    return block * _ceil_div(k, 2 * block)


def overall_utilization(m: Size, n: Size, k: Size, array: Array, cycles: Size) -> Floats:
    """MACs over the MACs that the array could do in `cycles`; above 1 when `k` is dense and the weights are 2:4."""
    return np.asarray(m, np.float64) * n * k / (np.asarray(cycles, np.float64) * array.macs_per_cycle)


def mapping_efficiency(m: Size, n: Size, k: Size, array: Array) -> Floats:
    """Fraction of the units that hold something, averaged over the folds."""
    down, across, _ = _mapped(m, n, k, array.dataflow)
    return down * across / (_folds(m, n, k, array) * np.float64(array.macs_per_cycle))


def sram_traffic(m: Size, n: Size, k: Size, array: Array, counters: Literal["clean", "scalesim"] = "clean") -> Traffic:
    """SRAM words of one dense product.

    `clean`: partial sums are written once a fold of K and read once for each fold after the first.
    `scalesim`: the tool's counters, which never read partial sums back and, output stationary, count rows + columns
    extra writes a fold.
    """
    m, n, k = (np.asarray(size, np.int64) for size in (m, n, k))
    once = np.ones_like(m * n * k)
    inputs = once if array.dataflow == "is" else _ceil_div(n, array.columns) * once
    extra = 0 * once
    match array.dataflow:
        case "os":
            weights, sums = _ceil_div(m, array.rows) * once, once
            if counters == "scalesim":
                extra = _folds(m, n, k, array) * (array.rows + array.columns)
        case "ws":
            weights, sums = once, _ceil_div(k, array.rows) * once
        case "is":
            weights, sums = _ceil_div(m, array.columns) * once, _ceil_div(k, array.rows) * once
    read_back = m * n * (sums - 1) if counters == "clean" else 0 * once
    return Traffic(m * k * inputs, k * n * weights, m * n * sums + extra, read_back)


def sparse_sram_traffic(
    m: Size, n: Size, k: Size, array: Array, mapping: Literal["layer", "row"], counters: Literal["clean", "scalesim"],
    pattern: tuple[int, int] = (KEPT, BLOCK),
) -> Traffic:  # fmt: skip
    """SRAM words of one weight-stationary product with N:M weights, 2:4 unless told otherwise; `k` is the dense K.

    Every kept weight may need any input of its block, so a block's inputs are all read. With `scalesim` and `row`
    pipeline bubbles count as input reads.
    """
    few, block = pattern
    kept = compacted_k(k, mapping, few, block)
    dense = sram_traffic(m, n, kept, array, counters)
    if mapping == "row" and counters == "scalesim":
        inputs = _folds(m, n, kept, array) * (np.asarray(m, np.int64) + array.rows - 1) * array.rows * block
    else:
        inputs = dense.input_reads * block // few
    return Traffic(inputs, dense.weight_reads, dense.output_writes, dense.output_reads)


def _mapped(m: Size, n: Size, k: Size, dataflow: Dataflow) -> tuple[Ints, Ints, Ints]:
    """What the rows hold, what the columns hold, what streams."""
    m, n, k = (np.asarray(size, np.int64) for size in (m, n, k))
    match dataflow:
        case "os":
            return m, n, k
        case "ws":
            return k, n, m
        case "is":
            return k, m, n


def _folds(m: Size, n: Size, k: Size, array: Array) -> Ints:
    down, across, _ = _mapped(m, n, k, array.dataflow)
    return _ceil_div(down, array.rows) * _ceil_div(across, array.columns)


def _ceil_div(value: Size, divisor: int) -> Ints:
    return -(-np.asarray(value, np.int64) // divisor)
