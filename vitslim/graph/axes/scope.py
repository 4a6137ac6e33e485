"""The interface of axis rules: the terms of a node's operands, and declarations about them.

A rule reads the terms of its operands, ties those that list the same indices, declares which arguments are sizes of
which terms, and returns the terms of the result. It never computes a size: an edit evaluates the declared terms again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.fx import Node

from vitslim.graph.axes.terms import ConflictError, Dims, Term, Terms, fresh, prims, product, size
from vitslim.graph.nodes import is_op

Results = Dims | list[Dims]
"""The terms of a result, one per dimension; a list of them for an operator with several result tensors."""


@dataclass(frozen=True)
class SizeArgument:
    """An argument of a node that is the size of a term."""

    node: Node
    place: tuple[int | str, ...]
    """Position or keyword of the argument, followed by the position of the item in a list argument."""
    term: Term
    sign: int = 1
    """-1 for a position that is counted from the end of a dimension."""
    computed: bool = False
    """Whether the argument is computed at run time, so that an edit cannot change it."""


@dataclass(frozen=True)
class Pin:
    """A missing argument whose default depends on a size: an edit writes the default as an argument."""

    node: Node
    keyword: str
    value: float


@dataclass
class Scope:
    """The results of the rules so far, for one graph."""

    shapes: dict[Node, Any]
    """Node to the shape of its tensor, or to a list of shapes."""
    batch: Term
    terms: Terms = field(default_factory=Terms)
    results: dict[Node, Results] = field(default_factory=dict)
    size_arguments: list[SizeArgument] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    kinds: list[tuple[Term, str]] = field(default_factory=list)
    """Kinds of terms (tokens, heads, ...), the most certain first."""

    def of(self, operand: Any) -> Dims:
        """Return the terms of an operand, one per dimension; empty for a number and for None."""
        dims = self.results.get(operand, ()) if isinstance(operand, Node) else ()
        return tuple(self.terms.find(term) for term in dims) if isinstance(dims, tuple) else ()

    def operands(self, node: Node, *names: str) -> list[Dims]:
        """Return the terms of several operands by their names in the operator's schema."""
        return [self.of(self.value(node, name)) for name in names]

    def value(self, node: Node, name: str) -> Any:
        """Return an argument by its name in the operator's schema, or its default.

        Raises ConflictError when this overload of the operator has no such argument.
        """
        if name not in _schema(node.target):
            raise ConflictError(f"enters {node.target}, whose overload the rule does not support")
        position, default = _schema(node.target)[name]
        return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)

    def dim(self, node: Node, rank: int, name: str = "dim") -> int:
        """Return an argument that is a dimension, counted from the front."""
        return int(self.value(node, name)) % rank

    def shape(self, node: Node) -> tuple[int, ...]:
        """Return the shape of a node with one result tensor."""
        shape: tuple[int, ...] = self.shapes[node]
        return shape

    def fresh(self, shape: Sequence[int], reason: str = "") -> Dims:
        """Return new axes, frozen if there is a reason; a multiple of the batch size begins with the batch axis."""
        batch = size(self.batch)
        dims = tuple(
            product((self.batch, fresh(length // batch))) if length and length % batch == 0 else fresh(length)
            for length in shape
        )
        for term in dims:
            if reason:
                self.terms.freeze(term, reason)
        return dims

    def freeze(self, dims: Sequence[Term], reason: str) -> None:
        """Freeze terms: no index may be removed or moved. The reason continues the sentence "this axis ..."."""
        for term in dims:
            self.terms.freeze(term, reason)

    def tie(self, a: Term, b: Term) -> None:
        """Declare that both terms list the same indices; if they cannot, both are frozen."""
        try:
            self.terms.unify(a, b)
        except ConflictError as conflict:
            self.freeze((a, b), str(conflict))

    def pair(self, *operands: Dims) -> Dims:
        """Tie operands from the right, as an elementwise operator broadcasts them."""
        rank = max(map(len, operands), default=0)
        result = []
        for back in range(rank, 0, -1):
            here = [dims[-back] for dims in operands if len(dims) >= back]
            first = next((term for term in here if size(term) != 1), here[0])
            for other in here:
                if other is not first and size(other) != 1:
                    self.tie(first, other)
            result.append(first)
        return tuple(result)

    def regroup(self, dims: Dims, shape: Sequence[int]) -> Dims:
        """Return the dimensions of a reshape of `dims` to `shape`.

        Groups that overlap, such as windows of 7 and pairs in a grid of 56, freeze only the dimensions that hold them.
        """
        result: list[Term] = []
        for run, lengths in _runs([size(dim) for dim in dims], shape):
            try:
                result += self.terms.regroup(dims[run], shape[lengths])
            except ConflictError as conflict:
                self.freeze(dims[run], str(conflict))
                result += self.fresh(shape[lengths], str(conflict))
        return tuple(result)

    def size(self, node: Node, name: str, term: Term, item: int | None = None) -> None:
        """Declare that an argument, or an item of it, is the size of a term."""
        value = self.value(node, name)
        value = value if item is None else value[item]
        if isinstance(value, Node):
            self._computed_size(node, self._place(node, name, item), term, value)
        elif value != -1 and value is not None:
            self._declare(node, self._place(node, name, item), term, value, 1)

    def sizes(self, node: Node, name: str, dims: Sequence[Term]) -> None:
        """Declare that the items of a list are the sizes of these terms."""
        for item, term in enumerate(dims):
            self.size(node, name, term, item)

    def offset(self, node: Node, name: str, before: Term, after: Term) -> None:
        """Declare that an argument is the boundary of two terms: the size of `before`, or minus that of `after`."""
        value = self.value(node, name)
        if value < 0:
            self._declare(node, self._place(node, name, None), after, value, -1)
        else:
            self._declare(node, self._place(node, name, None), before, value, 1)

    def pin(self, node: Node, name: str, value: float) -> None:
        """Declare the value of a missing argument, which an edit must keep."""
        self.pins.append(Pin(node, name, value))

    def set_kind(self, term: Term, kind: str) -> None:
        """Declare the kind of a term: tokens, classes, ..."""
        self.kinds.append((term, kind))

    def _declare(self, node: Node, place: tuple[int | str, ...], term: Term, value: int, sign: int) -> None:
        if value != sign * size(term):
            raise ConflictError(f"enters {node.target}, whose rule takes {value} for a size of {size(term)}")
        self.size_arguments.append(SizeArgument(node, place, term, sign))

    def _computed_size(self, node: Node, place: tuple[int | str, ...], term: Term, value: Node) -> None:
        """Tie a size that is read from another dimension; freeze all axes but the batch of any other computed size."""
        if is_op(value, torch.ops.aten.sym_size.int):
            self.tie(term, self.of(value.args[0])[int(str(value.args[1]))])
            return
        self.size_arguments.append(SizeArgument(node, place, term, computed=True))
        batch = set(prims(self.terms.find(self.batch)))
        for prim in prims(self.terms.find(term)):
            if prim not in batch:
                self.terms.freeze(prim, "enters a size that is computed at run time")

    def _place(self, node: Node, name: str, item: int | None) -> tuple[int | str, ...]:
        position, _ = _schema(node.target)[name]
        where: int | str = position if position < len(node.args) else name
        return (where,) if item is None else (where, item)


Rule = Callable[[Scope, Node], Results]
"""Takes the scope and a node of its operator; returns the terms of the result. May raise ConflictError."""


@cache
def _schema(target: Any) -> dict[str, tuple[int, Any]]:
    """Map the name of each argument of an operator to its position and default."""
    arguments = target._schema.arguments
    return {argument.name: (i, argument.default_value) for i, argument in enumerate(arguments)}


def _runs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield the shortest runs of dimensions of two shapes with equal numbers of elements."""
    i = j = 0
    while i < len(old) or j < len(new):
        start, left, right = (i, j), 1, 1
        if i < len(old):
            left, i = old[i], i + 1
        else:
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        yield slice(start[0], i), slice(start[1], j)
