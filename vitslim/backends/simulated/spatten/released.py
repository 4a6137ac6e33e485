"""The released behavioral model of SpAtten (mit-han-lab/spatten, bert.cpp), cycle for cycle.

DRAM, compute, drain and selection are added. Local value pruning, the low bits of progressive quantization and the
traffic of queries are not part of the released program, so they cost nothing here.
"""

from __future__ import annotations

import numpy as np

from vitslim.backends.simulated.simulator import Floats, Ints
from vitslim.backends.simulated.spatten.head_work import HeadWork, last_head
from vitslim.backends.simulated.spatten.layer_time import TRANSACTION, LayerTime, drain_cycles, passes
from vitslim.backends.simulated.spatten.selection import correct_rounds, shipped_rounds
from vitslim.backends.simulated.spatten.spec import QUANTIZED_BITS, SpattenSpec


def released_time(work: HeadWork, spec: SpattenSpec) -> LayerTime:
    """Return the cycles of each layer by the equations of the released program.

    Exact for layers without selection; a selection takes the mean over random pivots.
    """
    b = passes(work, spec.qk_mult)
    columns = b * (spec.qk_mult // work.dim) * work.dim
    lines = [-(-_transactions(columns, bits) // spec.channels) for bits in (work.key_bits, work.value_bits)]
    dram = np.where(work.active, lines[0] + lines[1], 0).sum(axis=2)
    fill = (work.queries * b).sum(axis=2)
    drain = np.where(last_head(work), drain_cycles(b), 0).sum(axis=2)
    topk = _selection(work, b, spec)
    moved = np.where(work.active, sum(_transactions(columns, bits) for bits in (work.key_bits, work.value_bits)), 0)
    cycles = np.asarray(fill + dram + drain + topk, np.float64)
    return LayerTime(cycles, fill, dram, drain, topk, dram_bytes=TRANSACTION * moved.sum(axis=2))


def _transactions(columns: Ints, bits: Ints) -> Ints:
    """Return the DRAM transactions of whole passes; 6 bits, every width above 8, and no quantization count as 8."""
    width = np.where((bits == 6) | (bits > QUANTIZED_BITS) | (bits < 0), QUANTIZED_BITS, bits)
    return np.asarray(columns * width // 8 // TRANSACTION)


def _selection(work: HeadWork, b: Ints, spec: SpattenSpec) -> Floats:
    """Return the cycles of token selection of each layer: one pass, the rounds, and one pass over the kept tokens."""
    selects = work.selected > 0
    rounds = shipped_rounds(work.keys, spec.topk.width)
    if spec.topk.rounds == "correct":
        rounds = correct_rounds(work.keys, work.selected, spec.topk.width)
    output = -(-work.selected // (spec.qk_mult // work.dim))
    return np.asarray(np.where(selects, b + rounds + output, 0.0).sum(axis=2), np.float64)
