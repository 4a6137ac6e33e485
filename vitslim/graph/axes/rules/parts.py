"""Operators that join tensors along a dimension or take parts of one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Results, Rule, Scope
from vitslim.graph.axes.terms import UNIT, ConflictError, Dims, Term, join, size
from vitslim.graph.axes.traits import Trait, Traits


def _replace(dims: Dims, dim: int, *terms: Term) -> Dims:
    """Return dims with one dimension replaced by other terms."""
    return (*dims[:dim], *terms, *dims[dim + 1 :])


def _cuts(scope: Scope, term: Term, sizes: Sequence[int]) -> list[Term]:
    """Return a term as consecutive parts of these sizes."""
    parts = []
    for length in sizes:
        part, term = scope.terms.cut(term, length)
        parts.append(part)
    return parts


def cat(scope: Scope, node: Node) -> Dims:
    operands = [scope.of(tensor) for tensor in scope.value(node, "tensors")]
    dim = scope.dim(node, len(operands[0]))
    rest = scope.pair(*(_replace(dims, dim, UNIT) for dims in operands))
    return _replace(rest, dim, join(dims[dim] for dims in operands))


def stack(scope: Scope, node: Node) -> Dims:
    """The new dimension concatenates one index per tensor; none of them can be removed or moved."""
    operands = [scope.of(tensor) for tensor in scope.value(node, "tensors")]
    dim = scope.dim(node, len(operands[0]) + 1)
    dims = scope.pair(*operands)
    return (*dims[:dim], join(UNIT for _ in operands), *dims[dim:])


def split_with_sizes(scope: Scope, node: Node) -> Results:
    return _split(scope, node, "split_sizes")


def split_sizes(scope: Scope, node: Node) -> Results:
    return _split(scope, node, "split_size")


def _split(scope: Scope, node: Node, name: str) -> Results:
    """The length of each part is its entry in the list."""
    (x,) = scope.operands(node, "self")
    dim = scope.dim(node, len(x))
    parts = _cuts(scope, x[dim], scope.value(node, name))
    scope.sizes(node, name, parts)
    return [_replace(x, dim, part) for part in parts]


def unbind(scope: Scope, node: Node) -> Results:
    (x,) = scope.operands(node, "self")
    dim = scope.dim(node, len(x))
    _cuts(scope, x[dim], [1] * size(x[dim]))
    return [_replace(x, dim)] * size(x[dim])


def select(scope: Scope, node: Node) -> Dims:
    (x,) = scope.operands(node, "self")
    dim, index = scope.dim(node, len(x)), scope.value(node, "index")
    if not isinstance(index, int):
        raise ConflictError("is indexed by a value computed at run time")
    before, rest = scope.terms.cut(x[dim], index % size(x[dim]))
    scope.terms.cut(rest, 1)
    scope.offset(node, "index", before, rest)
    return _replace(x, dim)


def slice_(scope: Scope, node: Node) -> Dims:
    """A part of a dimension; with a step, the first factor of a product whose second factor has one kept index."""
    (x,) = scope.operands(node, "self")
    dim = scope.dim(node, len(x))
    start, end, step = scope.value(node, "start") or 0, scope.value(node, "end"), int(scope.value(node, "step"))
    if not isinstance(start, int) or not isinstance(end, int | None):
        raise ConflictError("is sliced at a position computed at run time")
    total = size(x[dim])
    first, last, _ = slice(start, end).indices(total)
    if step != 1:
        return _replace(x, dim, _stride(scope, x[dim], first, last, step))
    before, rest = scope.terms.cut(x[dim], first)
    taken, after = scope.terms.cut(rest, last - first)
    if first:
        scope.offset(node, "start", before, rest)
    if last < total:
        scope.offset(node, "end", join((before, taken)), after)
    return _replace(x, dim, taken)


def _stride(scope: Scope, term: Term, first: int, last: int, step: int) -> Term:
    if first >= step or last != size(term) or size(term) % step:
        raise ConflictError("is sliced with a step that does not divide it")
    head, tail = scope.terms.factor(term, size(term) // step)
    scope.freeze((tail,), "is sliced with a step")
    return head


def narrow(scope: Scope, node: Node) -> Dims:
    """A part of a dimension by its start and its length."""
    (x,) = scope.operands(node, "self")
    dim, start = scope.dim(node, len(x)), scope.value(node, "start")
    if not isinstance(start, int):
        raise ConflictError("is sliced at a position computed at run time")
    before, rest = scope.terms.cut(x[dim], start)
    taken, _ = scope.terms.cut(rest, int(scope.value(node, "length")))
    scope.offset(node, "start", before, rest)
    scope.size(node, "length", taken)
    return _replace(x, dim, taken)


def glu(scope: Scope, node: Node) -> Dims:
    """The first half times a gate computed from the second."""
    (x,) = scope.operands(node, "self")
    dim = scope.dim(node, len(x))
    first, second = _cuts(scope, x[dim], [size(x[dim]) // 2] * 2)
    scope.tie(first, second)
    return _replace(x, dim, first)


def getitem(scope: Scope, node: Node) -> Any:
    """One of several results."""
    results = scope.results[node.all_input_nodes[0]]
    return results[int(str(node.args[1]))]


RULES: dict[Any, Rule] = {
    operator.getitem: getitem,
    "aten.cat": cat,
    "aten.stack": stack,
    "aten.split_with_sizes": split_with_sizes,
    "aten.split.sizes": split_sizes,
    "aten.unbind": unbind,
    "aten.select.int": select,
    "aten.slice.Tensor": slice_,
    "aten.narrow": narrow,
    "aten.glu": glu,
}

TRAITS: Traits = {Trait.MOVES: ("aten.select.int", "aten.slice.Tensor")}
