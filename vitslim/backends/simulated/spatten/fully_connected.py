"""Fully connected layers on SpAtten-e2e, which computes them on both multiplier arrays.

SpAtten itself computes attention only. Without these rows a total would leave out most of a vision transformer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vitslim.backends.simulated.attention_layers import AttentionLayer, AttentionModel
from vitslim.backends.simulated.simulator import Floats
from vitslim.backends.simulated.spatten.spec import SpattenSpec
from vitslim.results.accelerator_counts import SpattenCounts
from vitslim.workload import Operator


@dataclass(frozen=True)
class FcGemm:
    """`count` identical GEMMs of a whole batch, after pruning of tokens and heads."""

    role: str
    m: int
    n: int
    k: int
    count: int

    @property
    def macs(self) -> int:
        """MACs of all of them."""
        return self.m * self.n * self.k * self.count


def fc_gemms(model: AttentionModel, counts: SpattenCounts) -> tuple[FcGemm, ...]:
    """Return the GEMMs outside attention with the tokens and heads that cascade pruning leaves.

    Q, K and V are made of the tokens that arrive at a layer; projection and MLP process those that it leaves.
    Token and head counts are the same for all images.
    """
    found: Counter[tuple[str, int, int, int]] = Counter()
    arriving, left = counts.keys.max(axis=2)[0], counts.tokens_after[0]
    for i, layer in enumerate(model.layers):
        heads = int(counts.heads[0, i])
        for o in layer.projections:
            found[_sizes(o, layer, int(arriving[i]), heads, "columns")] += o.count
        for o in layer.output:
            found[_sizes(o, layer, int(left[i]), heads, "reduction")] += o.count
        for o in layer.mlp:
            found[_sizes(o, layer, int(left[i]), layer.heads, "")] += o.count
    for o in model.others:
        found[o.role, o.m, o.n, o.k] += o.count
    return tuple(FcGemm(*key, count) for key, count in found.items() if min(key[1:]) > 0)


def _sizes(o: Operator, layer: AttentionLayer, tokens: int, heads: int, pruned: str) -> tuple[str, int, int, int]:
    """Return role and sizes of a GEMM; one of the class token alone keeps its rows."""
    rows = o.m if o.m % layer.keys else o.m // layer.keys * min(tokens, layer.keys)
    columns = o.n * heads // layer.heads if pruned == "columns" else o.n
    reduction = o.k * heads // layer.heads if pruned == "reduction" else o.k
    return o.role, rows, columns, reduction


def fc_cycles(sizes: Floats, spec: SpattenSpec) -> tuple[Floats, Floats]:
    """Return cycles and DRAM bytes of GEMMs; `sizes` float64 (n, 3): M, N, K.

    The arrays work at their peak while operands stream from DRAM: the longer of both counts. Weights, inputs and
    outputs move once.
    """
    m, n, k = sizes.T
    compute = m * n * k / (spec.qk_mult + spec.pv_mult)
    moved = k * n * spec.fc.weight_bits / 8 + (m * k + m * n) * spec.fc.activation_bits / 8
    return np.asarray(np.maximum(compute, moved / spec.bytes_per_cycle)), np.asarray(moved)


def fc_rows(gemms: tuple[FcGemm, ...]) -> Iterator[tuple[float, float, float]]:
    """Yield M, N and K of each GEMM."""
    for one in gemms:
        yield float(one.m), float(one.n), float(one.k)
