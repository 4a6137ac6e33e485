"""Operators that depend on the position of an index: tables, order, shifts and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Results, Rule, Scope
from vitslim.graph.axes.terms import ConflictError, Dims, size
from vitslim.graph.axes.traits import Trait, Traits

TABLE = "is indexed by a tensor"


def index(scope: Scope, node: Node) -> Dims:
    """Adjacent dimensions are indexed by tensors, whose dimensions replace them."""
    (x,) = scope.operands(node, "self")
    indices = scope.value(node, "indices")
    read = [dim for dim, tensor in enumerate(indices) if tensor is not None]
    if read != list(range(read[0], read[-1] + 1)):
        raise ConflictError("is indexed together with a dimension that is not adjacent")
    scope.freeze(x[read[0] : read[-1] + 1], TABLE)
    return (*x[: read[0]], *scope.pair(*(scope.of(indices[dim]) for dim in read)), *x[read[-1] + 1 :])


def index_select(scope: Scope, node: Node) -> Dims:
    x, places = scope.operands(node, "self", "index")
    dim = scope.dim(node, len(x))
    scope.freeze((x[dim],), TABLE)
    return (*x[:dim], *places, *x[dim + 1 :])


def embedding(scope: Scope, node: Node) -> Dims:
    weight, places = scope.operands(node, "weight", "indices")
    scope.freeze(weight[:1], TABLE)
    return (*places, *weight[1:])


def gather(scope: Scope, node: Node) -> Dims:
    """Read along one dimension at the positions in `index`; the other dimensions of both tensors are paired."""
    x, places = scope.operands(node, "self", "index")
    dim = scope.dim(node, len(x))
    for place, (old, new) in enumerate(zip(x, places, strict=True)):
        if place == dim or size(old) != size(new):
            scope.freeze((old, new), TABLE)
        else:
            scope.tie(old, new)
    return places


def cumulative(scope: Scope, node: Node) -> Dims:
    """Cumulative sums: each index needs those before it."""
    (x,) = scope.operands(node, "self")
    scope.freeze((x[scope.dim(node, len(x))],), "is summed in order")
    return x


def ranked(scope: Scope, node: Node) -> Results:
    """The largest values along a dimension, or all of them sorted, with their positions."""
    (x,) = scope.operands(node, "self")
    dim = scope.dim(node, len(x))
    scope.freeze((x[dim],), "is sorted")
    (length,) = scope.fresh((scope.shapes[node][0][dim],), "is a rank in a sorted dimension")
    return [(*x[:dim], length, *x[dim + 1 :])] * 2


def shifted(scope: Scope, node: Node) -> Dims:
    """Roll and flip: indices move within the same dimensions."""
    (x,) = scope.operands(node, "self")
    for dim in scope.value(node, "dims") or range(len(x)):
        scope.freeze((x[int(dim)],), "is rolled or flipped")
    return x


def pad(scope: Scope, node: Node) -> Dims:
    """Pairs of padding before and after, from the last dimension backward."""
    (x,) = scope.operands(node, "self")
    amounts: Sequence[object] = scope.value(node, "pad")
    result = list(x)
    for back in range(len(amounts) // 2):
        dim = len(x) - 1 - back
        if amounts[2 * back] != 0 or amounts[2 * back + 1] != 0:
            scope.freeze((x[dim],), "is padded")
            (result[dim],) = scope.fresh((scope.shape(node)[dim],), "is padded")
    return tuple(result)


RULES: dict[Any, Rule] = {
    "aten.index.Tensor": index,
    "aten.index_select": index_select,
    "aten.embedding": embedding,
    "aten.gather": gather,
    "aten.cumsum": cumulative,
    "aten.cumprod": cumulative,
    "aten.flip": shifted,
    "aten.sort": ranked,
    "aten.topk": ranked,
    "aten.roll": shifted,
    "aten.pad": pad,
    "aten.constant_pad_nd": pad,
}

TRAITS: Traits = {Trait.MOVES: ("aten.roll.default",)}
