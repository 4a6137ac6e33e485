"""vitslim's own operators: token squeezing, its training form, and fake quantization."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Rule, Scope
from vitslim.graph.axes.terms import UNIT, Dims, join, size
from vitslim.graph.axes.traits import Trait, Traits

IS_TOKENS = "is a token position"


def token_score(scope: Scope, node: Node) -> Dims:
    """q, k (B, heads, n, d) and a bias (B, 1, 1, n) to a score for each token after the prefix (B, n - prefix)."""
    q, k, bias = scope.operands(node, "q", "k", "bias")
    batch, _, tokens, _ = scope.pair(q, k)
    scope.pair((batch, tokens), (bias[0], bias[-1]) if bias else ())
    _, patches = scope.terms.cut(tokens, int(scope.value(node, "prefix")))
    scope.freeze((patches,), IS_TOKENS)
    return (batch, patches)


def best_tokens(scope: Scope, node: Node) -> Dims:
    """x (B, prefix + n, C) and a score (B, n) to (B, prefix + kept, C): the kept tokens are a new axis."""
    x, score = scope.operands(node, "x", "score")
    prefix, patches = scope.terms.cut(x[1], size(x[1]) - size(score[1]))
    scope.tie(patches, score[1])
    scope.tie(x[0], score[0])
    (kept,) = scope.fresh((scope.shape(node)[1] - size(prefix),), IS_TOKENS)
    scope.set_kind(kept, "tokens")
    return (x[0], join((prefix, kept)), x[2])


def unchanged(scope: Scope, node: Node) -> Dims:
    """x (B, prefix + n, C) and masks (B, n) to x with other values in the same places; no token moves."""
    (x,) = scope.operands(node, "x")
    scope.freeze(x[1:2], IS_TOKENS)
    return x


def ranked_decision(scope: Scope, node: Node) -> Dims:
    """A mask for each token (B, n), chosen by rank."""
    (score,) = scope.operands(node, "score")
    scope.freeze(score[1:2], IS_TOKENS)
    return score


def policy_attention(scope: Scope, node: Node) -> Dims:
    """Attention with a mask (B, n) for the last n keys."""
    q, k, v = scope.operands(node, "q", "k", "v")
    heads = scope.pair(q[:-2], k[:-2], v[:-2])
    scope.tie(q[-1], k[-1])
    scope.tie(k[-2], v[-2])
    scope.freeze((q[-2], k[-2]), IS_TOKENS)
    return (*heads, q[-2], v[-1])


def masked_mean(scope: Scope, node: Node) -> Dims:
    """The average over dimension 1, weighted by a mask for its last indices."""
    (x,) = scope.operands(node, "x")
    scope.freeze(x[1:2], IS_TOKENS)
    return (x[0], UNIT, x[2]) if scope.value(node, "keepdim") else (x[0], x[2])


def fake_quant(scope: Scope, node: Node) -> Dims:
    """Elementwise; the scale is one number, one for each index along `axis`, or one for each group along it."""
    x, scale = scope.operands(node, "x", "scale")
    axis = scope.value(node, "axis")
    if scope.value(node, "group_size"):
        for each in scope.operands(node, "scale", "zero_points") if len(node.args) > 7 else (scale,):
            scope.freeze((x[int(axis)], each[int(axis)]), "is quantized in groups")
            for dim in set(range(len(x))) - {int(axis)}:
                scope.tie(x[dim], each[dim])
    elif axis is not None:
        scope.pair(x[int(axis) : int(axis) + 1], scale)
    return x


def fake_quant_float8(scope: Scope, node: Node) -> Dims:
    """Elementwise; the scale is one number, or one for each index along `axis`."""
    x, scale = scope.operands(node, "x", "scale")
    axis = scope.value(node, "axis")
    if axis is not None:
        scope.pair(x[int(axis) : int(axis) + 1], scale)
    return x


def pseudo_quant(scope: Scope, node: Node) -> Dims:
    """Elementwise; the range is one number, or one for each index of dimension 0."""
    x, per_channel = scope.operands(node, "x", "range_parameter")
    scope.pair(x[:1] if per_channel else (), per_channel)
    return x


def dynamic_fake_quant(scope: Scope, node: Node) -> Dims:
    """Elementwise: the smallest and the largest value are the same in any order."""
    (x,) = scope.operands(node, "x")
    return x


RULES: dict[Any, Rule] = {
    "vitslim.class_attention": token_score,
    "vitslim.received_attention": token_score,
    "vitslim.squeeze_tokens": best_tokens,
    "vitslim.keep_tokens": best_tokens,
    "vitslim.fuse_inattentive": best_tokens,
    "vitslim.ranked_decision": ranked_decision,
    "vitslim.masked_squeeze": unchanged,
    "vitslim.masked_keep": unchanged,
    "vitslim.policy_attention": policy_attention,
    "vitslim.masked_mean": masked_mean,
    "vitslim.fake_quant": fake_quant,
    "vitslim.dynamic_fake_quant": dynamic_fake_quant,
    "vitslim.pseudo_quant": pseudo_quant,
    "vitslim.fake_quant_float8": fake_quant_float8,
}

TRAITS: Traits = {
    Trait.SQUEEZE: (
        "vitslim.squeeze_tokens.default",
        "vitslim.keep_tokens.default",
        "vitslim.fuse_inattentive.default",
    ),
    Trait.LOGITS: ("vitslim.fake_quant.default", "vitslim.pseudo_quant.default"),
    Trait.INDEXWISE: (
        "vitslim.fake_quant.default",
        "vitslim.dynamic_fake_quant.default",
        "vitslim.pseudo_quant.default",
        "vitslim.fake_quant_float8.default",
    ),
}
