"""Cycles and traffic of attention layers on SpAtten, the result of both of its models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitslim.backends.simulated.simulator import Floats, Ints
from vitslim.backends.simulated.spatten.head_work import HeadWork

TRANSACTION = 32
"""Bytes of a DRAM transaction."""
BEFORE_PROBABILITIES = 1 + 1 + 9 + 7 + 21 + 23 + 29 + 7
"""Cycles of SRAM, multiplier and adder tree, dequantizer, exponential, accumulation, division, quantizer and FIFO."""
AFTER_PROBABILITIES = 1 + 1 + 1 + 1 + 1
"""Cycles of requantization, the skipped selection, and the stage of V."""


@dataclass(frozen=True)
class LayerTime:
    """Time and traffic of each layer; float64 (items, layers). Terms that overlap are not summed into `cycles`."""

    cycles: Floats
    fill: Floats
    """Cycles in which the QK^T array is busy."""
    dram: Floats
    drain: Floats
    topk: Floats
    dram_bytes: Floats


def passes(work: HeadWork, multipliers: int) -> Ints:
    """Return the cycles of a query over all keys: ceil(keys / (multipliers // columns)); 0 for a pruned head."""
    per_cycle = multipliers // work.dim
    return np.asarray(np.where(work.active, -(-work.keys // per_cycle), 0))


def drain_cycles(passes_of_head: Ints) -> Ints:
    """Return the cycles from the last pass to the last output, given the passes of one query."""
    return np.asarray(BEFORE_PROBABILITIES + AFTER_PROBABILITIES + passes_of_head)
