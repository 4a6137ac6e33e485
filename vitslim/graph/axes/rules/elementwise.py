"""Operators that are elementwise, reduce a dimension, or create a tensor from numbers."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Results, Rule, Scope
from vitslim.graph.axes.terms import UNIT, Dims
from vitslim.graph.axes.traits import Trait, Traits


def elementwise(scope: Scope, node: Node) -> Dims:
    """Pair all operands from the right. Also the rule of every operator with `torch.Tag.pointwise`."""
    return scope.pair(*(scope.of(operand) for operand in node.all_input_nodes))


def same(scope: Scope, node: Node) -> Dims:
    """The result has the terms of the first operand."""
    return scope.of(node.args[0])


def reduction(scope: Scope, node: Node) -> Dims:
    """Mean, sum, maximum, norm, ...: the order of the reduced indices does not matter."""
    (x,) = scope.operands(node, "self")
    dims, keep = scope.value(node, "dim"), scope.value(node, "keepdim")
    named = range(len(x)) if dims is None or dims == [] else dims if isinstance(dims, (list, tuple)) else (dims,)
    gone = {int(dim) % len(x) for dim in named}
    return tuple(UNIT if dim in gone else term for dim, term in enumerate(x) if keep or dim not in gone)


def moments(scope: Scope, node: Node) -> Results:
    """Two reductions at once: variance or deviation, and mean."""
    return [reduction(scope, node)] * 2


def extreme(scope: Scope, node: Node) -> Results:
    """The largest or smallest value and its position; users of the position depend on the order."""
    if any(user.args[1] == 1 for user in node.users):
        arg_extreme(scope, node)
    return [reduction(scope, node)] * 2


def arg_extreme(scope: Scope, node: Node) -> Dims:
    """The position of the largest or smallest value along a dimension."""
    (x,) = scope.operands(node, "self")
    dim = scope.value(node, "dim")
    scope.freeze(x if dim is None else (x[int(dim)],), "is searched for the position of a value")
    return reduction(scope, node)


def copied(scope: Scope, node: Node) -> Dims:
    """A tensor, or the part of it in a view, is overwritten."""
    return scope.pair(*scope.operands(node, "self", "src"))


def total(scope: Scope, node: Node) -> Dims:  # noqa: ARG001 - the same for every operand
    """A reduction to one number."""
    return ()


def filled(scope: Scope, node: Node) -> Dims:
    """A tensor of one repeated number, of the given size."""
    result = scope.fresh(scope.shape(node))
    scope.sizes(node, "size", result)
    return result


def positional(scope: Scope, node: Node) -> Dims:
    """A tensor whose values depend on their position."""
    return scope.fresh(scope.shape(node), "is a range of positions")


REDUCTIONS = (
    "mean.dim", "sum.dim_IntList", "prod.dim_int", "amax", "amin", "var", "std", "linalg_vector_norm", "logsumexp",
    "norm", "all.dim", "any.dim",
)  # fmt: skip
UNCHANGED = (
    "softmax", "_softmax", "log_softmax", "dropout", "clone", "contiguous", "alias", "detach", "to", "_to_copy", "lift",
    "lift_fresh_copy", "type_as", "zeros_like", "ones_like", "full_like", "empty_like",
)  # fmt: skip
UNTAGGED = ("hardswish", "hardsigmoid", "hardtanh", "relu6", "mish")
"""Elementwise operators without torch's pointwise tag."""
POSITIONAL = ("arange", "linspace", "eye", "scalar_tensor")
FILLED = ("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")

RULES: dict[Any, Rule] = {
    **{f"aten.{name}": reduction for name in REDUCTIONS},
    "aten.var_mean": moments,
    "aten.std_mean": moments,
    "aten.max.dim": extreme,
    "aten.min.dim": extreme,
    "aten.argmax": arg_extreme,
    "aten.argmin": arg_extreme,
    **{f"aten.{name}.default": total for name in ("mean", "sum", "max", "min")},
    **{f"aten.{name}": same for name in UNCHANGED},
    "aten.copy_": copied,
    **{f"aten.{name}": elementwise for name in UNTAGGED},
    **{f"aten.{name}": positional for name in POSITIONAL},
    **{f"aten.{name}": filled for name in FILLED},
}

_ARITHMETIC = ("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor")
_ACTIVATIONS = ("aten.gelu.default", "aten.relu.default", "aten.silu.default")
_ROWWISE = (*_ARITHMETIC, *_ACTIVATIONS, "aten.abs.default", "aten.clamp.default")

TRAITS: Traits = {
    Trait.ADDITION: ("aten.add.Tensor", "aten.add_.Tensor"),
    Trait.SOFTMAX: ("aten.softmax.int", "aten._softmax.default"),
    Trait.LOGITS: (
        *_ARITHMETIC, "aten.masked_fill.Scalar", "aten.to.dtype", "aten.type_as.default", "aten.dropout.default",
    ),
    Trait.MOVES: ("aten.mean.dim",),
    Trait.COPIES: ("aten.clone.default", "aten.dropout.default", "aten.contiguous.default"),
    Trait.ROWWISE: _ROWWISE,
    Trait.INDEXWISE: (
        *_ROWWISE, "aten.sigmoid.default", "aten.tanh.default", "aten.clone.default", "aten.contiguous.default",
    ),
    Trait.COMBINES: ("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"),
    Trait.SAME_SHAPE: (
        *_ARITHMETIC, *_ACTIVATIONS, "aten.softmax.int", "aten.sigmoid.default", "aten.hardswish.default",
        "aten.hardsigmoid.default", "aten.hardtanh.default",
    ),
    Trait.BOUNDED_BELOW: (
        *_ACTIVATIONS, "aten.hardswish.default", "aten.softplus.default", "aten.mish.default",
    ),
}  # fmt: skip
