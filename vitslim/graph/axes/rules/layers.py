"""Layers with weights: linear maps, convolutions, norms and LSTM."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Results, Rule, Scope
from vitslim.graph.axes.terms import Dims, join, product, size
from vitslim.graph.axes.traits import Trait, Traits


def linear(scope: Scope, node: Node) -> Dims:
    """out[..., o] = sum over i of x[..., i] weight[o, i] + bias[o]."""
    x, weight, bias = scope.operands(node, "input", "weight", "bias")
    scope.tie(x[-1], weight[-1])
    scope.pair(bias, weight[:-1])
    return (*x[:-1], *weight[:-1])


def convolution(scope: Scope, node: Node) -> Dims:
    """Weight (out, in / groups, *kernel). The group is the leading factor of the channels."""
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


def transposed_convolution(scope: Scope, node: Node) -> Dims:
    """Weight (in, out / groups, *kernel); the group is the leading factor of the inputs."""
    x, weight, bias = scope.operands(node, "input", "weight", "bias")
    scope.tie(x[1], weight[0])
    group, _ = scope.terms.factor(x[1], int(scope.value(node, "groups")))
    out = product((group, weight[1]))
    scope.pair(bias, (out,))
    scope.freeze(weight[2:], "is a position in a kernel")
    scope.size(node, "groups", group)
    return (x[0], out, *_slide(scope, x[2:], weight[2:], scope.shape(node)[2:]))


def _slide(scope: Scope, places: Dims, kernel: Dims, shape: tuple[int, ...]) -> Dims:
    """Output positions of a kernel; with a kernel of one position they are the input positions."""
    result = []
    for place, width, length in zip(places, kernel, shape, strict=True):
        if size(width) == 1 and size(place) == length:
            result.append(place)
            continue
        scope.freeze((place,), "is a position that a kernel slides over")
        (new,) = scope.fresh((length,), "is a position in the image")
        scope.set_kind(new, "tokens")
        result.append(new)
    return tuple(result)


def layer_norm(scope: Scope, node: Node) -> Dims:
    """Weight and bias have the last dimensions, which are also in `normalized_shape`."""
    x, weight, bias = scope.operands(node, "input", "weight", "bias")
    normed = x[len(x) - len(scope.value(node, "normalized_shape")) :]
    for other in (weight, bias):
        scope.pair(normed, other)
    scope.sizes(node, "normalized_shape", normed)
    return x


def rms_norm(scope: Scope, node: Node) -> Dims:
    """Like layer_norm, without bias."""
    x, weight = scope.operands(node, "input", "weight")
    normed = x[len(x) - len(scope.value(node, "normalized_shape")) :]
    scope.pair(normed, weight)
    scope.sizes(node, "normalized_shape", normed)
    return x


def batch_norm(scope: Scope, node: Node) -> Dims:
    """Weight, bias, mean and variance have dimension 1."""
    x, *others = scope.operands(node, "input", "weight", "bias", "running_mean", "running_var")
    for other in others:
        scope.pair(x[1:2], other)
    return x


def group_norm(scope: Scope, node: Node) -> Dims:
    """Dimension 1 is a product of groups and channels; weight and bias have all of it."""
    x, weight, bias = scope.operands(node, "input", "weight", "bias")
    groups, _ = scope.terms.factor(x[1], int(scope.value(node, "num_groups")))
    for other in (weight, bias):
        scope.pair(x[1:2], other)
    scope.size(node, "num_groups", groups)
    return x


def lstm(scope: Scope, node: Node) -> Results:
    """The four gates lead the rows of every weight; both directions and the states share one hidden axis.

    params, a layer and direction: weights (4 H, in) and (4 H, H), biases (4 H). Result (a, b, directions H), states.
    """
    (x,) = scope.operands(node, "input")
    params = [scope.of(param) for param in scope.value(node, "params")]
    states = [scope.of(state) for state in scope.value(node, "hx")]
    directions = 2 if scope.value(node, "bidirectional") else 1
    hidden = params[1][-1]
    below = [x[-1]] * directions
    for place, param in enumerate(params):
        gate, rows = scope.terms.factor(param[0], 4)
        scope.freeze((gate,), "is a gate index")
        scope.tie(rows, hidden)
        number, kind = divmod(place, 4 if scope.value(node, "has_biases") else 2)
        if kind == 0:
            scope.tie(param[1], below[number % directions] if number < directions else join([hidden] * directions))
        elif kind == 1:
            scope.tie(param[1], hidden)
    for state in states:
        scope.tie(state[-1], hidden)
    scope.freeze(x[:2], "is a position in a sequence")
    return [(*x[:2], join([hidden] * directions)), *states]


RULES: dict[Any, Rule] = {
    "aten.linear": linear,
    "aten.conv1d": convolution,
    "aten.conv2d": convolution,
    "aten.conv3d": convolution,
    "aten.conv_transpose1d": transposed_convolution,
    "aten.conv_transpose2d": transposed_convolution,
    "aten.layer_norm": layer_norm,
    "aten.rms_norm": rms_norm,
    "aten.batch_norm": batch_norm,
    "aten.instance_norm": batch_norm,
    "aten.group_norm": group_norm,
    "aten.lstm.input": lstm,
}

TRAITS: Traits = {
    Trait.LAYER: ("aten.linear.default", "aten.conv1d.default", "aten.conv2d.default"),
    Trait.NORM: (
        "aten.layer_norm.default",
        "aten.rms_norm.default",
        "aten.batch_norm.default",
        "aten.group_norm.default",
    ),
    Trait.ROW_NORM: ("aten.layer_norm.default", "aten.rms_norm.default"),
}
