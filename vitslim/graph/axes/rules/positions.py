"""Operators to which the place of an index matters: tables, shifts, padding, pooling, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Rule, Scope
from vitslim.graph.axes.terms import ConflictError, Dims, size

TABLE = "is read by a table of indices"


def index(scope: Scope, node: Node) -> Dims:
    """Neighbouring dimensions read by tensors of indices, whose dimensions come in their place."""
    (x,) = scope.operands(node, "self")
    indices = scope.value(node, "indices")
    read = [dim for dim, tensor in enumerate(indices) if tensor is not None]
    if read != list(range(read[0], read[-1] + 1)):
        raise ConflictError("is read by indices of dimensions that are not neighbours")
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


def shifted(scope: Scope, node: Node) -> Dims:
    """Roll and flip: indices move to other places of the same dimensions."""
    (x,) = scope.operands(node, "self")
    for dim in scope.value(node, "dims") or range(len(x)):
        scope.freeze((x[int(dim)],), "is shifted or turned round")
    return x


def pad(scope: Scope, node: Node) -> Dims:
    """Amounts before and behind, in pairs from the last dimension on."""
    (x,) = scope.operands(node, "self")
    amounts: Sequence[object] = scope.value(node, "pad")
    result = list(x)
    for back in range(len(amounts) // 2):
        dim = len(x) - 1 - back
        if amounts[2 * back] != 0 or amounts[2 * back + 1] != 0:
            scope.freeze((x[dim],), "is padded")
            (result[dim],) = scope.fresh((scope.shape(node)[dim],), "is padded")
    return tuple(result)


def resampled(scope: Scope, node: Node) -> Dims:
    """Pooling and interpolation over all dimensions behind the channels."""
    x, shape = scope.of(node.args[0]), scope.shape(node)
    scope.freeze(x[2:], "is a position in an image that is resampled")
    places = scope.fresh(shape[2:], "is a position in the image")
    for old, new in zip(x[2:], places, strict=True):
        scope.call(new, "tokens")
        if size(old) == size(new):
            scope.tie(old, new)
    return (*x[:2], *places)


RESAMPLING = (
    "avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "_upsample_bilinear2d_aa",
    "upsample_bicubic2d", "_upsample_bicubic2d_aa",
)  # fmt: skip

RULES: dict[Any, Rule] = {
    "aten.index.Tensor": index,
    "aten.index_select": index_select,
    "aten.embedding": embedding,
    "aten.roll": shifted,
    "aten.flip": shifted,
    "aten.pad": pad,
    "aten.constant_pad_nd": pad,
    **{f"aten.{name}": resampled for name in RESAMPLING},
}
