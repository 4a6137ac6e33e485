"""What a rule sees: the terms of its operands, the shapes of its results, and a place to declare size arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from vitslim.graph.axes.terms import Prim, Term, find, freeze, product, size, unify
from vitslim.graph.nodes import argument
from vitslim.graph.shapes import BATCH

Terms = tuple[Term, ...]


@dataclass(frozen=True)
class SizeArgument:
    """An argument of a node that is the size of a term: `args[index]`, or its `item`-th entry."""

    node: Node
    index: int | str
    item: int | None
    term: Term


@dataclass
class Scope:
    """The terms found so far. A rule reads its operands here and returns the terms of its result."""

    shapes: dict[Node, Any]
    """Node to the shape of its tensor, or to a list of shapes."""
    terms: dict[Node, Any] = field(default_factory=dict)
    """Node to one term a dimension, or to a list of such tuples."""
    size_arguments: list[SizeArgument] = field(default_factory=list)

    def of(self, node: Any) -> Terms:
        """Terms of an operand, one a dimension; empty for a number."""
        terms = self.terms.get(node, ()) if isinstance(node, Node) else ()
        return tuple(map(find, terms))

    def shape(self, node: Node) -> tuple[int, ...]:
        """Shape of a node that gives one tensor."""
        shape: tuple[int, ...] = self.shapes[node]
        return shape

    def declare(self, node: Node, index: int | str, item: int | None, term: Term) -> None:
        """Say that an argument is the size of a term; editing writes the new size there."""
        values = node.kwargs.get(index) if isinstance(index, str) else argument(node, index)
        value = values if item is None or not isinstance(values, (list, tuple)) else values[item]
        if isinstance(value, int) and value == size(term):
            self.size_arguments.append(SizeArgument(node, index, item, term))

    def fresh(self, shape: Sequence[int], reason: str) -> Terms:
        """New frozen axes; what is a multiple of the batch is led by the batch."""
        return tuple(_fresh(n, reason) for n in shape)


Rule = Callable[[Scope, Node], Any]


def _fresh(length: int, reason: str) -> Term:
    if length == 0 or length % BATCH:
        return Prim(length, frozen=reason)
    return product((batch_axis(), Prim(length // BATCH, frozen=reason)))


def batch_axis() -> Prim:
    """The axis of the images in a batch."""
    return Prim(BATCH, "batch", "is the batch")


def pair(operands: Sequence[Terms]) -> Terms:
    """Pair operands from the right as NumPy does; dimensions of size 1 stretch."""
    rank = max(map(len, operands), default=0)
    result: list[Term] = []
    for dim in range(rank):
        here = [terms[dim - rank] for terms in operands if rank - dim <= len(terms)]
        long = [term for term in here if size(term) != 1] or here[:1]
        for other in long[1:]:
            unify(long[0], other)
        result.append(long[0])
    return tuple(result)


def broadcast(scope: Scope, node: Node, operands: Sequence[Terms]) -> Terms:
    """Terms of an elementwise operator; freezes everything when its result has another shape than its operands."""
    result, shape = pair(operands), scope.shapes.get(node)
    if isinstance(shape, tuple) and [size(term) for term in result] != list(shape):
        return tuple(opaque(scope, node))
    return result


def opaque(scope: Scope, node: Node) -> Any:
    """Freeze every operand: for operators that no rule knows."""
    name = str(node.target).removeprefix("aten.")
    for operand in node.all_input_nodes:
        for terms in tensors(scope.terms.get(operand)):
            for term in terms:
                freeze(term, f"enters {name}, which has no rule")
    shape = scope.shapes.get(node)
    if isinstance(shape, list):
        return [scope.fresh(s, f"comes out of {name}") for s in shape]
    return scope.fresh(shape, f"comes out of {name}") if isinstance(shape, tuple) else ()


def tensors(terms: Any) -> list[Terms]:
    """The tuples of terms of a node that gives one tensor or several."""
    return list(terms) if isinstance(terms, list) else [terms] if terms else []
