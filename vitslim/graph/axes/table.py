"""The result of axis inference: named axes, their parameters, and the reasons that some cannot be cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.fx import Node

from vitslim.errors import StageError, closest
from vitslim.graph.axes.indices import Indices, axis_indices, repeated
from vitslim.graph.axes.names import PREDICTOR_PREFIX, Named, Tie, name_axes
from vitslim.graph.axes.scope import Pin, Scope, SizeArgument
from vitslim.graph.axes.terms import Dims, Prim, Term, prims, size

IN_NO_PARAMETER = "is in no parameter"


@dataclass(frozen=True)
class Site:
    """One dimension of one parameter or buffer in which an axis occurs."""

    parameter: str
    dim: int
    index: Indices
    """int64 (length of the dimension,): the axis index at each position, -1 where the axis does not occur."""


@dataclass(frozen=True)
class Axis:
    """Indices that belong together throughout the model: a coupled group of DepGraph."""

    name: str
    kind: str
    """embed, heads, qk, v, mlp, other, tokens, image, classes, batch."""
    size: int
    sites: tuple[Site, ...]
    frozen: str
    """Reason that the axis cannot be cut, as the end of a sentence; empty if it can be."""


@dataclass(frozen=True)
class AxisTable:
    """The axes of one graph. All returned terms are in normal form."""

    axes: tuple[Axis, ...]
    unknown_ops: dict[str, int]
    """Operator without a rule to the number of its calls."""
    attributes: Mapping[str, Dims]
    """Parameters and buffers, one term per dimension."""
    _scope: Scope
    _names: Mapping[Prim, str]

    @property
    def prunable(self) -> tuple[Axis, ...]:
        """Axes that can be cut."""
        return tuple(axis for axis in self.axes if not axis.frozen)

    @property
    def size_arguments(self) -> list[SizeArgument]:
        """Arguments in the graph that are sizes of terms."""
        return self._scope.size_arguments

    @property
    def pins(self) -> list[Pin]:
        """Arguments whose default depends on a size."""
        return self._scope.pins

    @cached_property
    def _by_name(self) -> dict[str, Axis]:
        return {axis.name: axis for axis in self.axes}

    @cached_property
    def _prims(self) -> dict[str, Prim]:
        return {name: prim for prim, name in self._names.items()}

    def __getitem__(self, name: str) -> Axis:
        """Return the axis of that name. Raises StageError with the closest name."""
        if name not in self._by_name:
            raise StageError(f"the model has no axis '{name}'", closest(name, self._by_name))
        return self._by_name[name]

    def prim(self, name: str) -> Prim:
        """The term of a named axis."""
        return self._prims[self[name].name]

    def name_of(self, prim: Prim) -> str:
        """Name of an axis."""
        return self._names[prim]

    def terms(self, node: Node, output: int | None = None) -> Dims:
        """Terms of a node's tensor, one per dimension; `output` selects one of several tensors."""
        return self.all_terms(node)[output or 0]

    def all_terms(self, node: Node) -> tuple[Dims, ...]:
        """Terms of each result tensor of a node."""
        results = self._scope.results[node]
        found = results if isinstance(results, list) else [results]
        return tuple(tuple(self.find(term) for term in dims) for dims in found)

    @property
    def shapes(self) -> dict[Node, Any]:
        """Shape of each node, or a list of shapes for several result tensors; the batch size is `BATCH`."""
        return self._scope.shapes

    def shape(self, node: Node) -> tuple[int, ...]:
        """Shape of a node's tensor; the batch is `vitslim.graph.axes.tensor_shapes.BATCH`."""
        return self._scope.shape(node)

    def parameter_terms(self, name: str) -> Dims:
        """Terms of a parameter or buffer, one per dimension."""
        return self.attributes[name]

    def find(self, term: Term) -> Term:
        """The normal form of a term."""
        return self._scope.terms.find(term)

    def key(self, term: Term) -> Term:
        """Return a key that is equal for two terms exactly if they are the same axes in the same arrangement."""
        return self._scope.terms.find(term)

    def size(self, term: Term) -> int:
        """The number of indices of a term."""
        return size(term)

    def reasons(self, prim: Prim) -> tuple[str, ...]:
        """Return all reasons that an axis is frozen."""
        return self._scope.terms.reasons(prim)

    def is_batch(self, prim: Prim) -> bool:
        """Whether an axis is the batch."""
        return prim is self._scope.batch


def build_table(
    scope: Scope, attributes: Mapping[str, Dims], buffers: frozenset[str], unknown_ops: dict[str, int]
) -> AxisTable:
    """Collect the axes of all tensors, find their sites, and name them."""
    find = scope.terms.find
    resolved = {name: tuple(find(term) for term in dims) for name, dims in attributes.items()}
    for dims in resolved.values():
        for prim in (prim for term in dims for prim in repeated(term)):
            scope.terms.freeze(prim, "occurs twice in one dimension")
    ties: dict[Prim, dict[Tie, None]] = {}
    for name, dims in resolved.items():
        for dim, term in enumerate(dims):
            for prim in prims(term):
                ties.setdefault(prim, {})[name, dim] = None
    for prim in _prims_of_nodes(scope):
        ties.setdefault(prim, {})
    for prim, found in ties.items():
        if all(name in buffers for name, _ in found):
            scope.terms.freeze(prim, IN_NO_PARAMETER)
        elif all(name.startswith(PREDICTOR_PREFIX) for name, _ in found):
            scope.terms.freeze(prim, "belongs to a token predictor")
    named = name_axes({prim: list(found) for prim, found in ties.items()}, _kinds(scope), buffers)
    axes = tuple(_axis(scope, prim, named[prim], found, resolved) for prim, found in ties.items())
    return AxisTable(axes, unknown_ops, resolved, scope, {prim: found.name for prim, found in named.items()})


def _axis(scope: Scope, prim: Prim, named: Named, ties: Mapping[Tie, None], attributes: Mapping[str, Dims]) -> Axis:
    sites = tuple(Site(name, dim, axis_indices(attributes[name][dim], prim)) for name, dim in ties)
    return Axis(named.name, named.kind, prim.size, sites, next(iter(scope.terms.reasons(prim)), ""))


def _prims_of_nodes(scope: Scope) -> Iterator[Prim]:
    for results in scope.results.values():
        for dims in results if isinstance(results, list) else [results]:
            for term in dims:
                yield from prims(scope.terms.find(term))


def _kinds(scope: Scope) -> dict[Prim, str]:
    """Return the kind of each axis: the first one that was declared."""
    kinds: dict[Prim, str] = {}
    for term, kind in scope.kinds:
        for prim in prims(scope.terms.find(term)):
            kinds.setdefault(prim, kind)
    return kinds
