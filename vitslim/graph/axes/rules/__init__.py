"""One small rule for each ATen operator, by family.

Keys are operator names, with or without the overload: `aten.mean` is for all overloads of mean that have no rule of
their own. A name and not the operator itself, so that vitslim's own operators need not be registered.

A rule for a new operatorthat swaps the halves of a dimension would be

    def halves_swapped(scope: Scope, node: Node) -> Dims:
        (x,) = scope.operands(node, "self")                             # terms of the operand, one a dimension
        dim = scope.dim(node, len(x))
        first, second = scope.terms.cut(x[dim], size(x[dim]) // 2)      # refines the axis into two
        return (*x[:dim], join((second, first)), *x[dim + 1 :])         # terms of the result

with a line in the table below it and one in the CASES of its test. `scope.tie` says that two terms list the same
indices, `scope.freeze` that none may go or move, `scope.size` that an argument is the length of a term.

Besides its rule, an operator can have traits (`axes/traits.py`): whether it is elementwise, a norm, a matmul, moves
values only. They stand in the `TRAITS` of the same files, under full names with the overload.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vitslim.graph.axes.rules import elementwise, images, layers, matmuls, merging, parts, positions, rearrange, tokens
from vitslim.graph.axes.scope import Rule
from vitslim.graph.axes.traits import Trait, Traits

RULES: Mapping[Any, Rule] = MappingProxyType(
    layers.RULES
    | matmuls.RULES
    | rearrange.RULES
    | parts.RULES
    | positions.RULES
    | images.RULES
    | elementwise.RULES
    | tokens.RULES
    | merging.RULES
)
"""Name of an operator to its axis rule."""

_LISTED: tuple[Traits, ...] = (
    layers.TRAITS,
    matmuls.TRAITS,
    rearrange.TRAITS,
    parts.TRAITS,
    positions.TRAITS,
    elementwise.TRAITS,
    tokens.TRAITS,
    merging.TRAITS,
)

TRAITS: Mapping[Trait, frozenset[str]] = MappingProxyType(
    {trait: frozenset(name for listed in _LISTED for name in listed.get(trait, ())) for trait in Trait}
)
"""Trait to the full names of all operators that have it."""
