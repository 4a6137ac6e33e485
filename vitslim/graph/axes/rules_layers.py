"""Rules of layers: linear, convolution, norms, matrix products, attention, and vitslim's own operators."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Rule, Scope, Terms, opaque, pair
from vitslim.graph.axes.terms import Prim, Sum, Term, factors_of, find, freeze, parts_of, size, unify
from vitslim.graph.nodes import argument


def linear(scope: Scope, node: Node) -> Terms:
    """out[..., o] = sum_i x[..., i] w[o, i] + b[o]."""
    x, weight, bias = (scope.of(argument(node, i)) for i in range(3))
    unify(x[-1], weight[1])
    if bias:
        unify(bias[0], weight[0])
    return (*x[:-1], weight[0])


def convolution(scope: Scope, node: Node) -> Terms:
    """Weight (out, in / groups, ...kernel). Kernel positions never move; a pointwise one keeps its positions."""
    x, weight, bias = (scope.of(argument(node, i)) for i in range(3))
    groups = int(argument(node, 6, "groups", 1))
    for term in weight[2:]:
        freeze(term, "is a position in a kernel")
    if bias:
        unify(bias[0], weight[0])
    if groups == 1:
        unify(x[1], weight[1])
    else:
        group, inner = _pair(x[1], groups)
        out_group, _ = _pair(weight[0], groups)
        unify(group, out_group)
        unify(inner, weight[1])
        scope.declare(node, 6 if len(node.args) > 6 else "groups", None, group)
    shape = scope.shape(node)
    kernel = [size(term) for term in weight[2:]]
    if all(n == 1 for n in kernel) and list(shape[2:]) == [size(term) for term in x[2:]]:
        return (x[0], weight[0], *x[2:])
    for term in x[2:]:
        freeze(term, "is a position that a kernel slides over")
    return (x[0], weight[0], *scope.fresh(shape[2:], "is a position in an image"))


def _pair(term: Term, first: int) -> tuple[Term, Term]:
    """A term as (first, rest); rest is a single index when the term has no more."""
    if size(term) == first:
        return term, Prim(1, frozen="has one index")
    outer, inner = factors_of(term, (first, size(term) // first))
    return outer, inner


def layer_norm(scope: Scope, node: Node) -> Terms:
    """Weight and bias run over the last dimensions."""
    x, weight, bias = scope.of(argument(node, 0)), scope.of(argument(node, 2)), scope.of(argument(node, 3))
    count = len(argument(node, 1))
    for item, term in enumerate(x[-count:]):
        for other in (weight, bias):
            if other:
                unify(term, other[item])
        scope.declare(node, 1, item, term)
    return x


def batch_norm(scope: Scope, node: Node) -> Any:
    """Weight, bias, mean and variance run over dimension 1."""
    x = scope.of(argument(node, 0))
    for index in range(1, 5):
        for term in scope.of(argument(node, index)):
            unify(x[1], term)
    return [x, (), ()] if isinstance(scope.shapes.get(node), list) else x


def attention(scope: Scope, node: Node) -> Terms:
    """softmax(q k^T) v with q (..., heads, n, d), k (..., heads, m, d), v (..., heads, m, e)."""
    q, k, v = (scope.of(argument(node, i)) for i in range(3))
    for lead_q, lead_k, lead_v in zip(q[:-2], k[:-2], v[:-2], strict=True):
        unify(lead_q, lead_k)
        unify(lead_q, lead_v)
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    for term in (q[-2], k[-2]):
        freeze(term, "counts tokens")
    mask = scope.of(argument(node, 3, "attn_mask"))
    pair([(*q[:-1], k[-2]), mask])
    return (*q[:-1], v[-1])


def matmul(scope: Scope, node: Node) -> Terms:
    """(..., n, k) times (..., k, m); leading dimensions broadcast."""
    a, b = scope.of(argument(node, 0)), scope.of(argument(node, 1))
    if min(len(a), len(b)) < 2:
        return tuple(opaque(scope, node))
    unify(a[-1], b[-2])
    return (*pair([a[:-2], b[:-2]]), a[-2], b[-1])


def softmax(scope: Scope, node: Node) -> Terms:
    """An index that goes would change the others: the axis stays."""
    x = scope.of(argument(node, 0))
    freeze(x[int(argument(node, 1, "dim", -1))], "runs through a softmax")
    return x


def class_attention(scope: Scope, node: Node) -> Terms:
    """q, k (B, heads, n, d) to a score for each patch token (B, n - prefix)."""
    q, k = scope.of(argument(node, 0)), scope.of(argument(node, 1))
    for first, second in zip(q, k, strict=True):
        unify(first, second)
    prefix = int(argument(node, 3))
    freeze(k[2], "counts tokens")
    patches = parts_of(k[2], (prefix, size(k[2]) - prefix))[1] if prefix else k[2]
    return (k[0], patches)


def squeeze_tokens(scope: Scope, node: Node) -> Terms:
    """x (B, prefix + n, C) and a score (B, n) to (B, prefix + keep, C)."""
    x, score = scope.of(argument(node, 0)), scope.of(argument(node, 1))
    keep, prefix = int(argument(node, 2)), size(x[1]) - size(score[1])
    freeze(x[1], "counts tokens")
    kept = Prim(keep, "tokens", "counts tokens")
    if not prefix:
        return (x[0], kept, x[2])
    first, patches = parts_of(x[1], (prefix, size(score[1])))
    unify(patches, score[1])
    return (x[0], Sum((find(first), kept)), x[2])


def fake_quant(scope: Scope, node: Node) -> Terms:
    """Elementwise; a scale for each index runs along `axis`."""
    x, scale, axis = scope.of(argument(node, 0)), scope.of(argument(node, 1)), argument(node, 3)
    if axis is not None and scale:
        unify(x[int(axis)], scale[0])
    return x


RULES: dict[str, Rule] = {
    "aten.linear.default": linear,
    "aten.conv1d.default": convolution,
    "aten.conv2d.default": convolution,
    "aten.conv3d.default": convolution,
    "aten.layer_norm.default": layer_norm,
    "aten.batch_norm.default": batch_norm,
    "aten._native_batch_norm_legit_no_training.default": batch_norm,
    "aten.scaled_dot_product_attention.default": attention,
    "aten.matmul.default": matmul,
    "aten.bmm.default": matmul,
    "aten.softmax.int": softmax,
    "aten._softmax.default": softmax,
    "aten.log_softmax.int": softmax,
    "vitslim.class_attention.default": class_attention,
    "vitslim.squeeze_tokens.default": squeeze_tokens,
    "vitslim.fake_quant.default": fake_quant,
}
