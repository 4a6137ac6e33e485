"""The attention layers of a workload, with the layers of each block around them.

Accelerators for transformers compute block by block. An ONNX file is a list of operators; this module finds in it, for
every attention, the GEMMs of Q, K and V before it, its output projection, and the MLP after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vitslim.errors import UsageError
from vitslim.workload import Operator, Workload
from vitslim.workload.operators import MATMUL_KINDS

BLOCK = re.compile(r"^(.*\.\d+)\.")
SCORES = ("QK^T", "class attention")
"""Roles of the matmul of queries and keys."""


@dataclass(frozen=True)
class AttentionLayer:
    """One attention of one image, and the GEMMs of its block."""

    name: str
    """Module of the block, or `attention 3` if the file names no modules."""
    heads: int
    """Heads, times windows in windowed attention."""
    queries: int
    keys: int
    qk_dim: int
    v_dim: int
    projections: tuple[Operator, ...]
    """GEMMs that make Q, K and V; empty if they are not found."""
    output: tuple[Operator, ...]
    """The output projection."""
    mlp: tuple[Operator, ...]

    @property
    def width(self) -> int:
        """Columns of Q, K and V together."""
        return self.heads * (2 * self.qk_dim + self.v_dim)

    @property
    def macs(self) -> int:
        """MACs of QK^T and PV of one image."""
        return self.heads * self.queries * self.keys * (self.qk_dim + self.v_dim)


@dataclass(frozen=True)
class AttentionModel:
    """A workload as attention layers and other GEMMs."""

    batch: int
    layers: tuple[AttentionLayer, ...]
    others: tuple[Operator, ...]
    """GEMMs and convolutions outside the blocks: patch embedding, head."""

    @property
    def macs(self) -> int:
        """MACs of one image, attention included."""
        gemms = [*self.others, *(o for x in self.layers for o in (*x.projections, *x.output, *x.mlp))]
        return sum(o.macs for o in gemms) // self.batch + sum(layer.macs for layer in self.layers)


def read_attention_layers(workload: Workload) -> AttentionModel:
    """Return the attention layers of a workload in order.

    Raises UsageError for a model without attention, such as a convolutional one.
    """
    matmuls = [o for o in workload.operators if o.op in MATMUL_KINDS]
    scores = [place for place, o in enumerate(matmuls) if o.role in SCORES]
    values = [place for place, o in enumerate(matmuls) if o.role == "PV"]
    if not scores or len(scores) != len(values):
        raise UsageError(
            "the model has no attention that this target computes: no matmul before and after a softmax",
            "use sim:systolic or a GPU target for convolutional models",
        )
    before = [_projections(matmuls[start:end], matmuls[end], matmuls[pv], workload.batch)
              for start, end, pv in zip([0, *(pv + 1 for pv in values[:-1])], scores, values, strict=True)]  # fmt: skip
    layers, used = [], set[int]()
    for place, (qk, pv) in enumerate(zip(scores, values, strict=True)):
        end = scores[place + 1] if place + 1 < len(scores) else len(matmuls)
        taken = {id(o) for o in before[place + 1]} if place + 1 < len(before) else set[int]()
        after = [o for o in matmuls[pv + 1 : end] if o.weight and id(o) not in taken]
        block = _block(after[0]) if after else ""
        mlp = [o for o in after[1:] if _block(o) == block]
        found = _layer(matmuls[qk], matmuls[pv], workload.batch, place, (before[place], tuple(after[:1]), tuple(mlp)))
        layers.append(found)
        used |= {id(o) for o in (*found.projections, *found.output, *found.mlp, matmuls[qk], matmuls[pv])}
    return AttentionModel(workload.batch, tuple(layers), tuple(o for o in matmuls if id(o) not in used))


def _projections(before: Sequence[Operator], qk: Operator, pv: Operator, batch: int) -> tuple[Operator, ...]:
    """Return the nearest GEMMs with a weight before an attention whose columns add up to those of Q, K and V."""
    heads = qk.count // batch
    found: list[Operator] = []
    for operator in reversed([o for o in before if o.weight]):
        found.insert(0, operator)
        columns = sum(o.n * o.count for o in found)
        if columns >= heads * (2 * qk.k + pv.n):
            return tuple(found) if columns == heads * (2 * qk.k + pv.n) else ()
    return ()


def _layer(
    qk: Operator, pv: Operator, batch: int, place: int, gemms: tuple[tuple[Operator, ...], ...]
) -> AttentionLayer:
    projections, output, mlp = gemms
    named = next((name for o in (*projections, *output) if (name := _block(o))), "")
    name = named or f"attention {place}"
    return AttentionLayer(name, qk.count // batch, qk.m, qk.n, qk.k, pv.n, projections, output, mlp)


def _block(operator: Operator) -> str:
    match = BLOCK.match(operator.layer)
    return match.group(1) if match else ""
