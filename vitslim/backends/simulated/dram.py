"""What a systolic array moves between DRAM and its SRAM for a product, and how long that takes.

A word goes through DRAM once where its operand fits the half of its buffer that is not being filled; otherwise once
for every fold that needs it. Partial sums stay on the chip, so that DRAM takes every result once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitslim.backends.simulated.spec import SystolicSpec
from vitslim.backends.simulated.systolic import Floats, Ints

KILOBYTE = 1024


@dataclass(frozen=True)
class DramTraffic:
    """Bytes of each product."""

    inputs: Floats
    weights: Floats
    outputs: Floats

    @property
    def total(self) -> Floats:
        """All of them."""
        return self.inputs + self.weights + self.outputs


def dram_traffic(sizes: Ints, sparse: Ints, spec: SystolicSpec) -> DramTraffic:
    """Bytes that DRAM moves for products `sizes` int64 (n, 3: M, N, K); `sparse` is 1 where weights are kept as 2:4."""
    m, n, k = (sizes[:, i].astype(np.float64) for i in range(3))
    rows, columns = spec.array
    bits = spec.bits
    kept, block = spec.pattern
    packed = (bits.weight + (block - 1).bit_length()) * kept / block  # a kept weight says where in its block it stood
    weight_bits = np.where(sparse == 1, packed, bits.weight)
    inputs, weights, outputs = m * k * bits.act / 8, k * n * weight_bits / 8, m * n * bits.out / 8
    match spec.dataflow:
        case "ws":
            input_passes, weight_passes = np.ceil(n / columns), np.ones_like(n)
        case "os":
            input_passes, weight_passes = np.ceil(n / columns), np.ceil(m / rows)
        case "is":
            input_passes, weight_passes = np.ones_like(n), np.ceil(m / columns)
    return DramTraffic(
        inputs * np.where(_fits(inputs, spec.sram_kb.ifmap), 1.0, input_passes),
        weights * np.where(_fits(weights, spec.sram_kb.filter), 1.0, weight_passes),
        outputs,
    )


def _fits(count: Floats, kilobytes: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return count <= kilobytes * KILOBYTE / 2


def stall_cycles(compute: Ints, traffic: DramTraffic, spec: SystolicSpec) -> Ints:
    """Whole cycles that a product waits for DRAM.

    `double_buffer`: DRAM works while the array does, and only what it takes longer counts. `none`: the array waits
    for all of it.
    """
    transfer = np.ceil(traffic.total / spec.bytes_per_cycle).astype(np.int64)
    return np.maximum(0, transfer - compute) if spec.overlap == "double_buffer" else transfer


def edge_cycles(sizes: Ints, traffic: DramTraffic, spec: SystolicSpec) -> Ints:
    """Cycles of the first load and the last store of each product, which nothing can hide.

    The first load is what the array holds for its first fold, the last store the results of the last fold.
    """
    rows, columns = spec.array
    m, n = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    held_bits = {"ws": spec.bits.weight, "os": 0, "is": spec.bits.act}[spec.dataflow]
    first = np.minimum(rows * columns * held_bits / 8, traffic.inputs + traffic.weights)
    last_rows = np.minimum(m, {"ws": np.inf, "os": rows, "is": columns}[spec.dataflow])
    last_columns = np.minimum(n, {"ws": columns, "os": columns, "is": np.inf}[spec.dataflow])
    last = last_rows * last_columns * spec.bits.out / 8
    return np.ceil((first + last) / spec.bytes_per_cycle).astype(np.int64)
