"""Attention in a graph: one scaled-dot-product node, or a softmax between two matmuls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.axes.tensor_shapes import BATCH
from vitslim.graph.nodes import argument, is_op
from vitslim.graph.ops.fake_quant import FAKE_QUANT
from vitslim.graph.ops.merge import SIZE_BIAS
from vitslim.graph.ops.pseudo_quant import PSEUDO_QUANT

aten = torch.ops.aten


@dataclass(frozen=True)
class Attention:
    """One attention: `node` = softmax(q k^T * scale + bias) v."""

    node: Node
    """Gives (batch, heads, tokens, v width)."""
    scores: Node
    """The matmul of queries and keys; `node` itself for fused attention."""
    q: Node
    """(batch, heads, tokens, qk width), before the scale."""
    k: Node
    """(batch, heads, tokens, qk width)."""
    v: Node
    scale: float
    heads: int
    biased: bool
    """Whether a mask or a position bias is added to the logits; sizes of tokens do not count."""
    windowed: bool
    """Whether tokens attend only within a window; windows are part of the batch dimension."""
    size_bias: Node | None = None
    """The logarithm of the sizes of merged tokens, added to the logits; None without it."""


def find_attentions(graph: Graph, shapes: dict[Node, tuple[int, ...]]) -> list[Attention]:
    """Return every attention in graph order whose query has rank 4."""
    found = []
    for node in graph.nodes:
        attention = _fused(node, shapes) if has_trait(node, Trait.ATTENTION) else _decomposed(node, shapes)
        if attention is not None:
            found.append(attention)
    return found


def _fused(node: Node, shapes: dict[Node, tuple[int, ...]]) -> Attention | None:
    q, k, v = (argument(node, i) for i in range(3))
    scale = argument(node, 6, "scale")
    if len(shapes[q]) != 4:
        return None
    if scale is None:
        scale = float(shapes[q][-1]) ** -0.5
    mask = argument(node, 3, "attn_mask")
    size_bias = mask if is_op(mask, SIZE_BIAS) else None
    biased = mask is not None and size_bias is None
    return Attention(node, node, q, k, v, float(scale), shapes[q][1], biased, shapes[q][0] != BATCH, size_bias)


def _decomposed(node: Node, shapes: dict[Node, tuple[int, ...]]) -> Attention | None:
    """Match `node` as the second matmul: softmax of the result of a first matmul, times v. None for any other node."""
    if not has_trait(node, Trait.MATMUL):
        return None
    probabilities, v = argument(node, 0), argument(node, 1)
    while has_trait(probabilities, Trait.LOGITS):
        probabilities = argument(probabilities, 0)
    if not has_trait(probabilities, Trait.SOFTMAX):
        return None
    logits, biased, scale, size_bias = argument(probabilities, 0), False, 1.0, None
    while has_trait(logits, Trait.LOGITS):
        other = argument(logits, 1)
        if is_op(other, SIZE_BIAS):
            size_bias = other
        elif is_op(logits, aten.add.Tensor, aten.masked_fill.Scalar):
            biased = True
        if is_op(logits, aten.mul.Tensor) and isinstance(other, float):
            scale *= other
        logits = argument(logits, 0)
    if not has_trait(logits, Trait.MATMUL):
        return None
    q, k, v = (_unquantized(operand) for operand in (argument(logits, 0), argument(logits, 1), v))
    if is_op(q, aten.mul.Tensor) and isinstance(argument(q, 1), float):
        q, scale = argument(q, 0), scale * argument(q, 1)
    if is_op(k, aten.transpose.int):
        k = argument(k, 0)
    if len(shapes[q]) != 4:
        return None
    return Attention(node, logits, q, k, v, scale, shapes[q][1], biased, shapes[q][0] != BATCH, size_bias)


def _unquantized(operand: Any) -> Any:
    return argument(operand, 0) if is_op(operand, FAKE_QUANT, PSEUDO_QUANT) else operand
