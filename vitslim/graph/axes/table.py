"""The result of axis inference: named axes, where each occurs, and why some cannot be cut."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Node

from vitslim.errors import StageError, closest
from vitslim.graph.axes.scope import Scope, SizeArgument, tensors
from vitslim.graph.axes.terms import Indices, Prim, Prod, Sum, Term, find, key, leaves, positions, repeated, size

BLOCK = re.compile(r"^(.*?\.\d+(?:\.blocks\.\d+)?)\.")
MODULES = ("mlp", "attn")


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
    """embed, heads, qk, v, mlp, other, tokens, image, batch."""
    size: int
    sites: tuple[Site, ...]
    frozen: str
    """Why the axis cannot be cut; empty when it can."""


@dataclass(frozen=True)
class AxisTable:
    """The axes of one graph."""

    axes: tuple[Axis, ...]
    unknown_ops: dict[str, int]
    """Operators without a rule, and how often each occurs."""
    size_arguments: tuple[SizeArgument, ...]
    """Arguments in the graph that are sizes of terms; an edit writes them anew."""
    _scope: Scope
    _parameters: Mapping[str, tuple[Term, ...]]
    _prims: Mapping[str, Prim]

    @cached_property
    def _names(self) -> dict[int, str]:
        return {id(prim): name for name, prim in self._prims.items()}

    @property
    def prunable(self) -> tuple[Axis, ...]:
        """Axes that can be cut."""
        return tuple(axis for axis in self.axes if not axis.frozen)

    def __getitem__(self, name: str) -> Axis:
        """The axis of that name. Raises StageError that names the closest."""
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise StageError(f"the model has no axis '{name}'", closest(name, [axis.name for axis in self.axes]))

    def prim(self, name: str) -> Prim:
        """The term of a named axis."""
        return self._prims[self[name].name]

    def terms(self, node: Node, output: int | None = None) -> tuple[Term, ...]:
        """Terms of a node's tensor, one a dimension; `output` chooses among several tensors."""
        found = self._scope.terms[node]
        return tuple(map(find, found if output is None else tensors(found)[output]))

    def parameter_terms(self, name: str) -> tuple[Term, ...]:
        """Terms of a parameter or buffer, one a dimension."""
        return tuple(map(find, self._parameters[name]))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameters and buffers that the graph reads."""
        return tuple(self._parameters)

    def name_of(self, prim: Prim) -> str:
        """Name of an axis."""
        return self._names[id(prim)]

    @staticmethod
    def is_batch(prim: Prim) -> bool:
        """Whether an axis is the batch."""
        return prim.kind == "batch"

    find = staticmethod(find)
    key = staticmethod(key)
    size = staticmethod(size)


def build_table(scope: Scope, parameters: Mapping[str, tuple[Term, ...]], unknown: dict[str, int]) -> AxisTable:
    """Collect the axes of all tensors, find their sites, and name them."""
    tied: dict[Prim, list[tuple[str, int]]] = {}
    for name, terms in parameters.items():
        for dim, term in enumerate(terms):
            for prim in repeated(term):
                prim.frozen = prim.frozen or "occurs twice in one dimension"
            for prim in leaves(term):
                if not tied.get(prim) or tied[prim][-1] != (name, dim):
                    tied.setdefault(prim, []).append((name, dim))
    for terms in scope.terms.values():
        for dims in tensors(terms):
            for prim in (leaf for term in dims for leaf in leaves(term)):
                tied.setdefault(prim, [])
    prims = _named(tied)
    axes = tuple(
        Axis(
            name,
            prim.kind or _kind(tied[prim]),
            prim.size,
            tuple(Site(p, dim, positions(parameters[p][dim], prim)) for p, dim in tied[prim]),
            prim.frozen
            or ("" if tied[prim] else "occurs in no parameter")
            or ("has one index" if prim.size == 1 else ""),
        )
        for name, prim in prims.items()
    )
    return AxisTable(axes, unknown, tuple(scope.size_arguments), scope, parameters, prims)


def _named(tied: Mapping[Prim, list[tuple[str, int]]]) -> dict[str, Prim]:
    """A name that a person recognises, from the parameters that an axis ties together; unique and stable."""
    wanted = [(_name(prim, sites), prim) for prim, sites in tied.items()]
    counts = Counter(name for name, _ in wanted)
    numbers: Counter[str] = Counter()
    result: dict[str, Prim] = {}
    for name, prim in wanted:
        numbers[name] += 1
        result[f"{name}.{numbers[name]}" if counts[name] > 1 else name] = prim
    return result


def _name(prim: Prim, sites: list[tuple[str, int]]) -> str:
    if not sites:
        return prim.kind or "axis"
    kind = prim.kind or _kind(sites)
    names = _own(sites)
    if prim.frozen and kind not in {"heads", "qk", "v"}:
        return f"{names[0]}:{sites[0][1]}"
    blocks = _blocks(names)
    if len(blocks) == 1 and kind != "embed":
        return f"{blocks[0]}.{kind}"
    if kind == "embed":
        stages = list(dict.fromkeys(block.partition(".blocks.")[0] for block in blocks if ".blocks." in block))
        return f"{stages[0]}.embed" if stages else "embed"
    return f"{names[0]}:{sites[0][1]}"


def _kind(sites: list[tuple[str, int]]) -> str:
    names = _own(sites)
    blocks = _blocks(names)
    if len(blocks) == 1 and all(".mlp." in name for name in names):
        return "mlp"
    if any("norm" in name for name in names) or len(blocks) > 1:
        return "embed"
    return "other"


def _own(sites: list[tuple[str, int]]) -> list[str]:
    """Parameters of the model itself: what a stage inserted renames no axis."""
    return [name for name, _ in sites if not name.startswith("vitslim.")] or [name for name, _ in sites]


def _blocks(names: Iterable[str]) -> list[str]:
    matches = (BLOCK.match(name) for name in names)
    return list(dict.fromkeys(match.group(1) for match in matches if match))


__all__ = ["Axis", "AxisTable", "Prod", "Site", "Sum", "build_table"]
