"""A refined model of SpAtten: transfers overlap with compute, and value pruning, low bits and queries cost time.

A head takes `max(max(dram / efficiency, fill) + drain, queries x selection of values)` cycles: the engine that selects
V rows works beside the pipeline, one query after the other. A layer adds one token selection. Derived; on short
sequences the drain per head explains most of the difference from the released model.
"""

from __future__ import annotations

import numpy as np

from vitslim.backends.simulated.simulator import Floats
from vitslim.backends.simulated.spatten.head_work import HeadWork
from vitslim.backends.simulated.spatten.layer_time import TRANSACTION, LayerTime, drain_cycles, passes
from vitslim.backends.simulated.spatten.selection import RTL_OVERHEAD, correct_rounds
from vitslim.backends.simulated.spatten.spec import SpattenSpec

FLOAT_BITS = 32
KILOBYTE = 1024


def refined_time(work: HeadWork, spec: SpattenSpec) -> LayerTime:
    """Return the cycles of each layer; transfers have the stored widths, and include low bits and queries."""
    b = passes(work, spec.qk_mult)
    moved = head_bytes(work, spec)
    lines = np.ceil(moved / TRANSACTION) / spec.channels / spec.dram_efficiency
    fill = (work.queries + work.refetched) * b
    drain = np.where(work.active, drain_cycles(b), 0)
    chosen = correct_rounds(work.keys, work.values, spec.topk.comparators, RTL_OVERHEAD)
    heads = np.maximum(np.maximum(lines, fill) + drain, work.queries * chosen)
    tokens = correct_rounds(work.keys, work.selected, spec.topk.comparators, RTL_OVERHEAD)
    topk = np.where(work.selected > 0, tokens, 0.0).sum(axis=2)
    return LayerTime(
        heads.sum(axis=2) + topk, fill.sum(axis=2), lines.sum(axis=2), drain.sum(axis=2), topk, moved.sum(axis=2)
    )


def head_bytes(work: HeadWork, spec: SpattenSpec) -> Floats:
    """Return the bytes that each head reads: Q, K and the used V rows once, the low bits of K if any query needs them.

    K and V that exceed half of their buffer are read again for every query. float64 (items, layers, heads).
    """
    again = [
        np.where(work.keys * work.dim * spec.word_bits / 8 > size * KILOBYTE / 2, work.queries, 1)
        for size in spec.kv_sram_kb
    ]
    low = np.where(work.refetched > 0, work.keys, 0) * stored_bits(work.low_bits)
    keys = (work.keys * stored_bits(work.key_bits) + low) * again[0]
    values = np.where(again[1] > 1, work.values * work.queries, work.value_rows) * stored_bits(work.value_bits)
    bits = work.dim * (keys + values + work.queries * stored_bits(work.query_bits))
    return np.asarray(np.where(work.active, bits / 8, 0.0), np.float64)


def stored_bits(bits: Floats | np.typing.NDArray[np.int64]) -> np.typing.NDArray[np.int64]:
    """Return the width in DRAM; -1, not quantized, is 32 bits."""
    return np.asarray(np.where(bits < 0, FLOAT_BITS, bits), np.int64)
