"""The operators that merge tokens (`vitslim/graph/ops/merge.py`)."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from vitslim.graph.axes.rules.tokens import IS_TOKENS
from vitslim.graph.axes.scope import Rule, Scope
from vitslim.graph.axes.terms import UNIT, Dims, join, size
from vitslim.graph.axes.traits import Trait, Traits


def match_alternate(scope: Scope, node: Node) -> Dims:
    """Keys (B, heads, n, d) to positions of tokens; all heads and all features are treated alike."""
    (keys,) = scope.operands(node, "keys")
    scope.freeze((keys[2],), IS_TOKENS)
    return (keys[0], *scope.fresh(scope.shape(node)[1:], IS_TOKENS))


def match_ranked(scope: Scope, node: Node) -> Dims:
    """x (B, prefix + n, C) and a score (B, n) to positions of tokens; all features are treated alike."""
    x, score = scope.operands(node, "x", "score")
    _, patches = scope.terms.cut(x[1], size(x[1]) - size(score[1]))
    scope.tie(patches, score[1])
    scope.tie(x[0], score[0])
    scope.freeze((patches,), IS_TOKENS)
    return (x[0], *scope.fresh(scope.shape(node)[1:], IS_TOKENS))


def merged_sizes(scope: Scope, node: Node) -> Dims:
    """Sizes (B, prefix + n) to those after merging (B, prefix + kept): the kept tokens are a new axis."""
    sizes, match = scope.operands(node, "sizes", "match")
    scope.tie(sizes[0], match[0])
    prefix, patches = scope.terms.cut(sizes[1], int(scope.value(node, "prefix")))
    scope.freeze((patches,), IS_TOKENS)
    (kept,) = scope.fresh((scope.shape(node)[1] - size(prefix),), IS_TOKENS)
    scope.set_kind(kept, "tokens")
    return (sizes[0], join((prefix, kept)))


def merge(scope: Scope, node: Node) -> Dims:
    """x (B, n, C) to the tokens that the merged sizes count."""
    x, match, sizes, merged = scope.operands(node, "x", "match", "sizes", "merged_sizes")
    scope.pair(x[:2], sizes)
    for other in (match, merged):
        scope.tie(x[0], other[0])
    return (x[0], merged[1], x[2])


def unit_sizes(scope: Scope, node: Node) -> Dims:
    """x (B, n, C) to one number for each token (B, n)."""
    (x,) = scope.operands(node, "x")
    return x[:2]


def size_bias(scope: Scope, node: Node) -> Dims:
    """Sizes (B, n) to an attention mask (B, 1, 1, n)."""
    (sizes,) = scope.operands(node, "sizes")
    return (sizes[0], UNIT, UNIT, sizes[1])


RULES: dict[Any, Rule] = {
    "vitslim.match_alternate": match_alternate,
    "vitslim.match_ranked": match_ranked,
    "vitslim.alternate_sizes": merged_sizes,
    "vitslim.ranked_sizes": merged_sizes,
    "vitslim.merge_alternate": merge,
    "vitslim.merge_ranked": merge,
    "vitslim.unit_sizes": unit_sizes,
    "vitslim.size_bias": size_bias,
}

TRAITS: Traits = {
    Trait.SQUEEZE: ("vitslim.merge_alternate.default", "vitslim.merge_ranked.default"),
    Trait.ANY_BASIS: ("vitslim.match_ranked.default", "vitslim.unit_sizes.default"),
}
