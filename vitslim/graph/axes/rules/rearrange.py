"""Operators that arrange the same elements in other dimensions."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Results, Rule, Scope
from vitslim.graph.axes.terms import UNIT, ConflictError, Dims, fresh, product, size
from vitslim.graph.axes.traits import Trait, Traits


def reshape(scope: Scope, node: Node) -> Dims:
    """Row-major regrouping to the given sizes."""
    (x,) = scope.operands(node, "self")
    result = scope.regroup(x, scope.shape(node))
    scope.sizes(node, "shape", result)
    return result


def view(scope: Scope, node: Node) -> Dims:
    (x,) = scope.operands(node, "self")
    result = scope.regroup(x, scope.shape(node))
    scope.sizes(node, "size", result)
    return result


def reshape_as(scope: Scope, node: Node) -> Dims:
    """The sizes are those of another tensor, so its dimensions are paired with those of the result."""
    x, other = scope.operands(node, "self", "other")
    result = scope.regroup(x, scope.shape(node))
    return scope.pair(result, other)


def flatten(scope: Scope, node: Node) -> Dims:
    (x,) = scope.operands(node, "self")
    start, end = scope.dim(node, len(x), "start_dim"), scope.dim(node, len(x), "end_dim")
    return (*x[:start], product(x[start : end + 1]), *x[end + 1 :])


def unflatten(scope: Scope, node: Node) -> Dims:
    (x,) = scope.operands(node, "self")
    dim, count = scope.dim(node, len(x)), len(scope.value(node, "sizes"))
    opened = scope.regroup(x[dim : dim + 1], scope.shape(node)[dim : dim + count])
    scope.sizes(node, "sizes", opened)
    return (*x[:dim], *opened, *x[dim + 1 :])


def permute(scope: Scope, node: Node) -> Dims:
    (x,) = scope.operands(node, "self")
    return tuple(x[int(dim)] for dim in scope.value(node, "dims"))


def transpose(scope: Scope, node: Node) -> Dims:
    (x,) = scope.operands(node, "self")
    dims = list(x)
    first, second = scope.dim(node, len(dims), "dim0"), scope.dim(node, len(dims), "dim1")
    dims[first], dims[second] = dims[second], dims[first]
    return tuple(dims)


def swap_last_dims(scope: Scope, node: Node) -> Dims:
    """The last two dimensions are swapped."""
    (x,) = scope.operands(node, "self")
    return (*x[:-2], *reversed(x[-2:]))


def unsqueeze(scope: Scope, node: Node) -> Dims:
    (x,) = scope.operands(node, "self")
    dim = scope.dim(node, len(x) + 1)
    return (*x[:dim], UNIT, *x[dim:])


def squeeze(scope: Scope, node: Node) -> Dims:
    """Remove only the named dimensions: one that an edit cuts to a single index must stay."""
    (x,) = scope.operands(node, "self")
    named = scope.value(node, "dim")
    gone = {int(dim) % len(x) for dim in (named if isinstance(named, (list, tuple)) else (named,))}
    return tuple(term for dim, term in enumerate(x) if dim not in gone or size(term) != 1)


def expand(scope: Scope, node: Node) -> Dims:
    """A dimension of one index is repeated; the copies are a new axis."""
    (x,) = scope.operands(node, "self")
    shape = scope.shape(node)
    old = (UNIT,) * (len(shape) - len(x)) + x
    result = tuple(term if size(term) == length else fresh(length) for term, length in zip(old, shape, strict=True))
    scope.sizes(node, "size", result)
    return result


def expand_as(scope: Scope, node: Node) -> Dims:
    return scope.pair(*scope.operands(node, "other", "self"))


def repeat(scope: Scope, node: Node) -> Dims:
    """Repeat a whole dimension end to end: the product of the copies and the dimension."""
    return _repeat(scope, node, "repeats")


def tile(scope: Scope, node: Node) -> Dims:
    """Like repeat; missing leading counts are 1."""
    return _repeat(scope, node, "dims")


def _repeat(scope: Scope, node: Node, name: str) -> Dims:
    (x,) = scope.operands(node, "self")
    shape = scope.shape(node)
    old = (UNIT,) * (len(shape) - len(x)) + x
    copies = scope.fresh([length // size(term) for length, term in zip(shape, old, strict=True)])
    scope.sizes(node, name, copies[len(shape) - len(scope.value(node, name)) :])
    return tuple(product(pair) for pair in zip(copies, old, strict=True))


def repeat_interleave(scope: Scope, node: Node) -> Dims:
    """Repeat each index in a row: the product of the dimension and the copies."""
    (x,) = scope.operands(node, "self")
    if scope.value(node, "dim") is None:
        raise ConflictError("is repeated without a dimension, which has no rule")
    dim = scope.dim(node, len(x))
    (copies,) = scope.fresh((int(scope.value(node, "repeats")),))
    repeated = product((x[dim], copies))
    scope.size(node, "repeats", copies)
    scope.size(node, "output_size", repeated)
    return (*x[:dim], repeated, *x[dim + 1 :])


def movedim(scope: Scope, node: Node) -> Dims:
    """Move the named dimensions; the others keep their order."""
    (x,) = scope.operands(node, "self")
    source, target = ([int(dim) % len(x) for dim in _listed(scope.value(node, n))] for n in ("source", "destination"))
    rest = iter(dim for dim in range(len(x)) if dim not in source)
    placed = dict(zip(target, source, strict=True))
    return tuple(x[placed[dim] if dim in placed else next(rest)] for dim in range(len(x)))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def meshgrid(scope: Scope, node: Node) -> Results:
    """One dimension for each tensor; with indexing `xy` the first two are swapped."""
    dims = [term for tensor in scope.value(node, "tensors") for term in scope.of(tensor)]
    if node.kwargs.get("indexing") == "xy":
        dims[:2] = reversed(dims[:2])
    return [tuple(dims)] * len(dims)


RULES: dict[Any, Rule] = {
    "aten.reshape": reshape,
    "aten.view": view,
    "aten._unsafe_view": view,
    "aten.reshape_as": reshape_as,
    "aten.view_as": reshape_as,
    "aten.flatten.using_ints": flatten,
    "aten.unflatten.int": unflatten,
    "aten.permute": permute,
    "aten.transpose.int": transpose,
    "aten.t": swap_last_dims,
    "aten.mT": swap_last_dims,
    "aten.unsqueeze": unsqueeze,
    "aten.squeeze.dim": squeeze,
    "aten.squeeze.dims": squeeze,
    "aten.expand": expand,
    "aten.expand_as": expand_as,
    "aten.repeat": repeat,
    "aten.tile": tile,
    "aten.repeat_interleave.self_int": repeat_interleave,
    "aten.movedim": movedim,
    "aten.meshgrid": meshgrid,
}

TRAITS: Traits = {
    Trait.MOVES: (
        "aten.reshape.default",
        "aten.transpose.int",
        "aten.permute.default",
        "aten.flatten.using_ints",
    ),
    Trait.COPIES: ("aten.expand.default",),
    Trait.LOGITS: ("aten.reshape.default",),
}
