"""Cycles and energy of the work of FACT."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitslim.backends.simulated.energy import WORD_BITS, load_table
from vitslim.backends.simulated.fact.layer_work import LayerWork
from vitslim.backends.simulated.fact.spec import FactSpec
from vitslim.backends.simulated.simulator import Floats
from vitslim.results import Energy

TABLE = "horowitz45"
MULTIPLY_PJ, ADD_PJ = 0.2, 0.1
"""INT8 multiply and INT32 add of `horowitz45`."""
PUBLISHED_PJ_PER_OP = 0.228
"""4388 GOPS/W for a whole layer: a lower bound, because no reconstruction can claim to need less than the chip."""
FLOOR = "up to the published 0.228 pJ/op"


@dataclass(frozen=True)
class LayerCycles:
    """Cycles of each layer; float64 (images, layers)."""

    total: Floats
    compute: Floats
    prediction: Floats
    dram: Floats


def layer_cycles(work: LayerWork, spec: FactSpec) -> LayerCycles:
    """Return the cycles of each layer: the longest of computation, prediction and transfers, or without out-of-order
    scheduling their sum; the cycles to fill the pipeline are added."""
    compute = work.effective_macs(spec.low_rate) / spec.mult
    prediction, dram = work.additions / spec.n_ep, work.dram_bytes / spec.bytes_per_cycle
    busy = np.maximum(np.maximum(compute, prediction), dram) if spec.out_of_order else compute + prediction + dram
    return LayerCycles(np.asarray(busy + spec.fill_cycles), compute, prediction, dram)


def energy_parts(work: LayerWork, spec: FactSpec) -> dict[str, Floats]:
    """Return millijoules of each image and layer by part, float64 (images, layers).

    Nothing is claimed below the published energy of an operation: the last part is the difference.
    """
    table, scale = load_table(TABLE), spec.energy.scale_28nm
    share = spec.energy.mult_4x4 if spec.ffn.int4_rate == 4 else spec.energy.mult_4x8
    high, low = MULTIPLY_PJ + ADD_PJ, MULTIPLY_PJ * share + ADD_PJ
    read = 2 * (work.high_macs + work.low_macs) / spec.operand_reuse
    parts = {
        "compute": scale * (high * work.high_macs + low * work.low_macs),
        "prediction": scale * spec.energy.log_add_pj * work.additions,
        "sram": scale * 8 * table.sram(spec.sram_kb) / WORD_BITS * read,
        "dram": 8 * table.dram_pj / WORD_BITS * work.dram_bytes,
    }
    sums = sum(part.sum(axis=1, keepdims=True) for part in parts.values())
    missing = np.maximum(0.0, PUBLISHED_PJ_PER_OP * 2 * work.dense_macs.sum(axis=1, keepdims=True) - sums)
    shares = work.dense_macs / np.maximum(1.0, work.dense_macs.sum(axis=1, keepdims=True))
    return {name: part / 1e9 for name, part in (parts | {FLOOR: missing * shares}).items()}


def energy_of(parts: dict[str, Floats], batch: int, spec: FactSpec) -> Energy:
    """Return the energy of a batch: the mean over images times the batch."""
    table = load_table(TABLE)
    scale = spec.energy.scale_28nm
    return Energy(
        table=f"{TABLE}@28", node="28 nm", source=f"{table.source}; logic scaled from {table.node} by {scale:g}",
        parts_mj={name: batch * float(part.mean(axis=0).sum()) for name, part in parts.items()},
        mac_pj=scale * (MULTIPLY_PJ + ADD_PJ), dram_pj_per_bit=table.dram_pj / WORD_BITS,
        assumed=("energy.scale_28nm", "energy.mult_4x8", "energy.mult_4x4", "energy.log_add_pj", "operand_reuse"),
    )  # fmt: skip
