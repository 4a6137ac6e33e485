"""DRAM traffic of GEMMs on a systolic array, and the cycles that it takes.

A word moves once if its operand fits into half of its buffer (the other half is being filled), otherwise once for
every fold that needs it. Partial sums stay on the chip, so results are written once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitslim.backends.simulated.simulator import Bools, Floats, Ints
from vitslim.backends.simulated.systolic.spec import SystolicSpec

KILOBYTE = 1024


@dataclass(frozen=True)
class DramTraffic:
    """Bytes of each GEMM; float64 (n,)."""

    inputs: Floats
    weights: Floats
    outputs: Floats

    @property
    def total(self) -> Floats:
        """Bytes of all operands."""
        return self.inputs + self.weights + self.outputs


def dram_traffic(sizes: Ints, sparse: Bools, spec: SystolicSpec) -> DramTraffic:
    """Return DRAM bytes of GEMMs. `sizes` int64 (n, 3): M, N, K; `sparse` bool (n,): weights are stored as N:M."""
    m, n, k = (sizes[:, i].astype(np.float64) for i in range(3))
    rows, columns = spec.array
    bits = spec.bits
    kept, size = spec.pattern
    packed = (bits.weight + (size - 1).bit_length()) * kept / size  # a kept weight is stored with its index
    weight_bits = np.where(sparse, packed, bits.weight)
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


def _fits(moved: Floats, kilobytes: int) -> Bools:
    return moved <= kilobytes * KILOBYTE / 2


def stall_cycles(compute: Ints, traffic: DramTraffic, spec: SystolicSpec) -> Ints:
    """Return the whole cycles that each GEMM waits for DRAM.

    `double_buffer`: transfers overlap with compute, and only the excess counts. `none`: the array waits for all
    transfers.
    """
    transfer = np.ceil(traffic.total / spec.bytes_per_cycle).astype(np.int64)
    return np.maximum(0, transfer - compute) if spec.overlap == "double_buffer" else transfer


def edge_cycles(sizes: Ints, traffic: DramTraffic, spec: SystolicSpec) -> Ints:
    """Return the cycles of the first load and the last store of each GEMM, which cannot be hidden.

    The first load is the stationary operand of the first fold, the last store the results of the last fold.
    """
    rows, columns = spec.array
    m, n = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    held_bits = {"ws": spec.bits.weight, "os": 0, "is": spec.bits.act}[spec.dataflow]
    first = np.minimum(rows * columns * held_bits / 8, traffic.inputs + traffic.weights)
    last_rows = np.minimum(m, {"ws": np.inf, "os": rows, "is": columns}[spec.dataflow])
    last_columns = np.minimum(n, {"ws": columns, "os": columns, "is": np.inf}[spec.dataflow])
    last = last_rows * last_columns * spec.bits.out / 8
    return np.ceil((first + last) / spec.bytes_per_cycle).astype(np.int64)
