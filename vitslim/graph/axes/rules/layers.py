"""Layers: linear maps, convolutions, norms, matrix products and attention."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Rule, Scope
from vitslim.graph.axes.terms import ConflictError, Dims, size


def linear(scope: Scope, node: Node) -> Dims:
    """out[..., o] = sum over i of x[..., i] weight[o, i] + bias[o]."""
    x, weight, bias = scope.operands(node, "input", "weight", "bias")
    scope.tie(x[-1], weight[-1])
    scope.pair(bias, weight[:-1])
    return (*x[:-1], *weight[:-1])


def convolution(scope: Scope, node: Node) -> Dims:
    """Weight (out, in / groups, *kernel). Channels are led by the index of the group; depthwise is all group."""
    x, weight, bias = scope.operands(node, "input", "weight", "bias")
    groups = int(scope.value(node, "groups"))
    group, inner = scope.terms.factor(x[1], groups)
    out_group, _ = scope.terms.factor(weight[0], groups)
    scope.tie(group, out_group)
    scope.tie(inner, weight[1])
    scope.pair(bias, weight[:1])
    scope.freeze(weight[2:], "is a position in a kernel")
    scope.size(node, "groups", group)
    return (x[0], weight[0], *_slide(scope, x[2:], weight[2:], scope.shape(node)[2:]))


def _slide(scope: Scope, places: Dims, kernel: Dims, shape: tuple[int, ...]) -> Dims:
    """Positions after a kernel went over them: those that only one was looked at for stay what they were."""
    result = []
    for place, width, length in zip(places, kernel, shape, strict=True):
        if size(width) == 1 and size(place) == length:
            result.append(place)
            continue
        scope.freeze((place,), "is a position that a kernel slides over")
        (new,) = scope.fresh((length,), "is a position in the image")
        scope.call(new, "tokens")
        result.append(new)
    return tuple(result)


def layer_norm(scope: Scope, node: Node) -> Dims:
    """Weight and bias run along the last dimensions, which also stand in `normalized_shape`."""
    x, weight, bias = scope.operands(node, "input", "weight", "bias")
    normed = x[len(x) - len(scope.value(node, "normalized_shape")) :]
    for other in (weight, bias):
        scope.pair(normed, other)
    scope.sizes(node, "normalized_shape", normed)
    return x


def rms_norm(scope: Scope, node: Node) -> Dims:
    """As layer_norm, without bias."""
    x, weight = scope.operands(node, "input", "weight")
    normed = x[len(x) - len(scope.value(node, "normalized_shape")) :]
    scope.pair(normed, weight)
    scope.sizes(node, "normalized_shape", normed)
    return x


def batch_norm(scope: Scope, node: Node) -> Dims:
    """Weight, bias, mean and variance run along dimension 1."""
    x, *others = scope.operands(node, "input", "weight", "bias", "running_mean", "running_var")
    for other in others:
        scope.pair(x[1:2], other)
    return x


def group_norm(scope: Scope, node: Node) -> Dims:
    """Dimension 1 is groups of channels; weight and bias run along all of it."""
    x, weight, bias = scope.operands(node, "input", "weight", "bias")
    groups, _ = scope.terms.factor(x[1], int(scope.value(node, "num_groups")))
    for other in (weight, bias):
        scope.pair(x[1:2], other)
    scope.size(node, "num_groups", groups)
    return x


def _product(scope: Scope, a: Dims, b: Dims) -> Dims:
    """(..., n, k) times (..., k, m); leading dimensions are paired."""
    if min(len(a), len(b)) < 2:
        raise ConflictError("enters a product with a vector, which has no rule")
    scope.tie(a[-1], b[-2])
    return (*scope.pair(a[:-2], b[:-2]), a[-2], b[-1])


def matmul(scope: Scope, node: Node) -> Dims:
    return _product(scope, *scope.operands(node, "self", "other"))


def bmm(scope: Scope, node: Node) -> Dims:
    return _product(scope, *scope.operands(node, "self", "mat2"))


def addmm(scope: Scope, node: Node) -> Dims:
    bias, a, b = scope.operands(node, "self", "mat1", "mat2")
    return scope.pair(_product(scope, a, b), bias)


def attention(scope: Scope, node: Node) -> Dims:
    """softmax(q k^T * scale + mask) v with q (..., n, d), k (..., m, d), v (..., m, e); the scale stays as it was."""
    q, k, v, mask = scope.operands(node, "query", "key", "value", "attn_mask")
    heads = scope.pair(q[:-2], k[:-2], v[:-2])
    scope.tie(q[-1], k[-1])
    scope.tie(k[-2], v[-2])
    scope.pair((*heads, q[-2], k[-2]), mask)
    if scope.value(node, "is_causal"):
        scope.freeze((q[-2], k[-2]), "is read in its order by causal attention")
    if scope.value(node, "scale") is None:
        scope.pin(node, "scale", float(size(q[-1])) ** -0.5)
    return (*heads, q[-2], v[-1])


RULES: dict[Any, Rule] = {
    "aten.linear": linear,
    "aten.conv1d": convolution,
    "aten.conv2d": convolution,
    "aten.conv3d": convolution,
    "aten.layer_norm": layer_norm,
    "aten.rms_norm": rms_norm,
    "aten.batch_norm": batch_norm,
    "aten.group_norm": group_norm,
    "aten.matmul": matmul,
    "aten.bmm": bmm,
    "aten.mm": bmm,
    "aten.addmm": addmm,
    "aten.scaled_dot_product_attention": attention,
}
