"""Compute cycles and SRAM traffic of GEMMs on a systolic array: closed forms of SCALE-Sim v3.0.0.

A GEMM is C[M, N] = A[M, K] B[K, N] with activations A and weights B. All functions take integers or integer arrays and
work elementwise. Compute cycles equal those of SCALE-Sim; they do not contain memory time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vitslim.backends.simulated.simulator import Floats, Ints
from vitslim.backends.simulated.systolic.spec import Dataflow

Size = int | Ints

TWO_FOUR = (2, 4)
"""2:4 sparsity: two of every four weights along K are kept."""


@dataclass(frozen=True)
class Array:
    """A grid of multiply-accumulate units, and the operand that they hold."""

    rows: int
    columns: int
    dataflow: Dataflow

    @property
    def macs_per_cycle(self) -> int:
        """Peak number of multiply-accumulates in a cycle."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Traffic:
    """Words that move between SRAM and array."""

    input_reads: Ints
    weight_reads: Ints
    output_writes: Ints
    output_reads: Ints
    """Partial sums that are read back for accumulation."""

    @property
    def words(self) -> Ints:
        """Reads and writes of all operands."""
        return self.input_reads + self.weight_reads + self.output_writes + self.output_reads


def compute_cycles(m: Size, n: Size, k: Size, array: Array, overlap: Literal["none", "double_buffer"] = "none") -> Ints:
    """Return the cycles of one GEMM.

    `none`: folds run one after the other, edge folds at full cost; the result is the index of the last cycle, counted
    from 0, as SCALE-Sim prints it. `double_buffer`: the stationary operand of a fold is loaded while the previous fold
    streams (TPU-like, derived). For 2:4 weights pass `compacted_k(k, ...)` as `k`.
    """
    streamed = _mapped(m, n, k, array.dataflow)[2]
    if overlap == "double_buffer":
        return _folds(m, n, k, array) * np.maximum(streamed, array.rows) + 2 * array.rows + array.columns
    preload = 0 if array.dataflow == "os" else array.rows
    return _folds(m, n, k, array) * (preload + array.rows + array.columns + streamed - 2) - 1


def compacted_k(k: Size, mapping: Literal["layer", "row"], pattern: tuple[int, int] = TWO_FOUR) -> Ints:
    """Return the rows that K occupies in a weight-stationary array with N:M weights along K; `pattern` is (N, M).

    `layer`: ceil(K * N / M). `row`: each column has its own count, at most half of M, so that two groups of M weights
    share the slots of one.
    """
    kept, size = pattern
    if mapping == "layer":
        return _ceil_div(np.asarray(k, np.int64) * kept, size)
    return size * _ceil_div(k, 2 * size)


def overall_utilization(m: Size, n: Size, k: Size, array: Array, cycles: Size) -> Floats:
    """Return MACs over peak MACs in `cycles`; above 1 when `k` is dense and the weights are 2:4."""
    return np.asarray(m, np.float64) * n * k / (np.asarray(cycles, np.float64) * array.macs_per_cycle)


def sram_traffic(m: Size, n: Size, k: Size, array: Array, counters: Literal["clean", "scalesim"] = "clean") -> Traffic:
    """Return the SRAM words of one dense GEMM.

    `clean`: partial sums are written once per fold of K and read once for each fold after the first.
    `scalesim`: the counters of SCALE-Sim, which never read partial sums back and, with `os`, add rows + columns writes
    per fold.
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
    pattern: tuple[int, int] = TWO_FOUR,
) -> Traffic:  # fmt: skip
    """Return the SRAM words of one weight-stationary GEMM with N:M weights; `k` is the dense K, `pattern` (N, M).

    A kept weight may need any of the M inputs of its group, so all of them are read. With `scalesim` and `row`,
    pipeline bubbles count as input reads.
    """
    few, size = pattern
    kept = compacted_k(k, mapping, pattern)
    dense = sram_traffic(m, n, kept, array, counters)
    if mapping == "row" and counters == "scalesim":
        inputs = _folds(m, n, kept, array) * (np.asarray(m, np.int64) + array.rows - 1) * array.rows * size
    else:
        inputs = dense.input_reads * size // few
    return Traffic(inputs, dense.weight_reads, dense.output_writes, dense.output_reads)


def _mapped(m: Size, n: Size, k: Size, dataflow: Dataflow) -> tuple[Ints, Ints, Ints]:
    """Return the dimensions mapped to rows, mapped to columns, and streamed."""
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
