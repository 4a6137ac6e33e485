"""Work of FACT layer by layer: MACs, additions of the predictor, and DRAM bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitslim.backends.simulated.attention_layers import AttentionLayer, AttentionModel
from vitslim.backends.simulated.fact.spec import FactSpec
from vitslim.backends.simulated.simulator import Floats
from vitslim.errors import UsageError
from vitslim.results.accelerator_counts import FactCounts
from vitslim.workload import Operator

KILOBYTE = 1024


@dataclass(frozen=True)
class LayerWork:
    """Work of each image in each layer; float64 (images, layers). The last layer is everything outside the blocks."""

    high_macs: Floats
    """MACs with two INT8 operands."""
    low_macs: Floats
    """MACs with an INT4 operand, in the MLP."""
    dense_macs: Floats
    additions: Floats
    """Additions of the prediction unit."""
    dram_bytes: Floats
    """Of one image in a batch."""

    def effective_macs(self, rate: float) -> Floats:
        """Return the MACs in units of the time of an INT8 MAC, if `rate` INT4 MACs take the time of one."""
        return self.high_macs + self.low_macs / rate


def stated_counts(model: AttentionModel, spec: FactSpec) -> FactCounts:
    """Return the counts of one image that follow from the stated fractions."""
    found = []
    for layer in model.layers:
        rows = round(spec.stated.rows * layer.heads * layer.queries)
        columns = round(spec.stated.columns * layer.heads * layer.keys)
        entries = rows * spec.ep.kept(layer.keys)
        found.append((entries, columns, rows, round(spec.stated.high * mlp_rows(layer, model.batch))))
    return FactCounts(*np.array(found, np.int64).T[:, None, :])


def mlp_rows(layer: AttentionLayer, batch: int) -> int:
    """Return the tokens of one image in the MLP of a layer; 0 without an MLP."""
    return layer.mlp[0].m // batch if layer.mlp else 0


def layer_work(model: AttentionModel, counts: FactCounts, spec: FactSpec) -> LayerWork:
    """Return the work of the images of `counts`.

    Raises UsageError for a layer whose GEMMs of Q, K and V are not found.
    """
    columns = [_layer(layer, i, model.batch, counts, spec) for i, layer in enumerate(model.layers)]
    images = counts.entries.shape[0]
    outside = float(sum(o.macs for o in model.others)) / model.batch
    moved = sum(gemm_bytes(o, spec) for o in model.others) / model.batch
    columns.append((outside, 0.0, outside, 0.0, moved))
    parts = [np.stack([np.broadcast_to(np.asarray(column[i], np.float64), images) for column in columns], axis=1)
             for i in range(5)]  # fmt: skip
    return LayerWork(*parts)


def _layer(
    layer: AttentionLayer, place: int, batch: int, counts: FactCounts, spec: FactSpec
) -> tuple[Floats | float, ...]:
    """Return high MACs, low MACs, dense MACs, additions and bytes of one layer, for each image or for all alike."""
    if not layer.projections:
        raise UsageError(
            f"the GEMMs of Q, K and V of {layer.name} are not found, and FACT skips parts of them",
            "give a file that vitslim exported from a model with one linear layer or one each for Q, K and V",
        )
    width = layer.projections[0].k
    entries, columns, rows, high = (one[:, place].astype(np.float64) for one in (
        counts.entries, counts.columns, counts.rows, counts.high_tokens))  # fmt: skip
    output, mlp = (sum(o.macs for o in group) / batch for group in (layer.output, layer.mlp))
    tokens = max(1, mlp_rows(layer, batch))
    made = rows * width * layer.qk_dim + columns * width * (layer.qk_dim + layer.v_dim)
    attention = entries * (layer.qk_dim + layer.v_dim)
    dense = sum(o.macs for o in layer.projections) / batch + layer.macs + output + mlp
    additions = layer.heads * layer.qk_dim * (
        width * (layer.queries + layer.keys) + layer.queries * layer.keys) if spec.predicts else 0.0  # fmt: skip
    moved = block_bytes(layer, batch, spec) / batch
    share = high / tokens
    return made + attention + output + mlp * share, mlp * (1 - share), dense, float(additions), moved


def block_bytes(layer: AttentionLayer, batch: int, spec: FactSpec) -> float:
    """Return the DRAM bytes of a block for a batch at INT8: weights, input, output, and results beyond the buffer.

    An intermediate result that exceeds half of the buffer is written and read once. A GEMM of which neither operand
    fits reads one of them again for each tile of the other.
    """
    half = spec.sram_kb * KILOBYTE / 2
    gemms = [*layer.projections, *layer.output, *layer.mlp]
    between = [
        batch * layer.keys * layer.width,
        *(o.m * o.n * o.count for o in (*layer.output, *layer.mlp[:-1])),
    ]
    first, last = layer.projections[0], (layer.mlp or layer.output or layer.projections)[-1]
    edges = first.m * first.k + last.m * last.n
    return float(sum(_weights(o) + _again(o, half) for o in gemms) + edges + 2 * sum(b for b in between if b > half))


def gemm_bytes(o: Operator, spec: FactSpec) -> float:
    """Return the DRAM bytes of a GEMM alone: weights, inputs and outputs at INT8."""
    return _weights(o) + o.count * (o.m * o.k + o.m * o.n) + _again(o, spec.sram_kb * KILOBYTE / 2)


def _weights(o: Operator) -> float:
    return float(o.count * o.n * o.k)


def _again(o: Operator, half: float) -> float:
    """Return the bytes that a GEMM reads more than once: the cheaper of both orders of tiles."""
    inputs, weights = o.m * o.k, o.n * o.k
    if min(inputs, weights) <= half:
        return 0.0
    return o.count * min(weights * (math.ceil(inputs / half) - 1.0), inputs * (math.ceil(weights / half) - 1.0))


def totals(values: Sequence[Floats]) -> tuple[float, ...]:
    """Return the sum over layers of the mean over images of each array."""
    return tuple(float(value.mean(axis=0).sum()) for value in values)
