"""Cost of a model as a function of axis lengths: MACs, parameters, or latency by a table.

The cost is a sum over parts: one for each residual branch that can be cut out of the sum, and one for the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from vitslim.graph.sketch import Matmul, ModelSketch, Operator, Size
from vitslim.recipe.stages import Budget

if TYPE_CHECKING:
    from vitslim.results import LatencyTable

Lengths = dict[str, int]
"""Axis name to its number of kept indices."""

Costs = Callable[[Mapping[str, int]], float]
"""Cost of the model with some axes at new lengths."""

REST = ""
"""Name of the part that belongs to no single branch."""


@dataclass(frozen=True)
class PartCost:
    """Cost of one residual branch, or of the rest of the model."""

    axes: frozenset[str]
    """Axes on whose lengths the cost depends."""
    cost: Costs


@dataclass(frozen=True)
class ModelCosts:
    """Cost of a model by its parts. Lengths that are not given are those of the sketch."""

    parts: Mapping[str, PartCost]
    """Name of a branch, or REST, to its cost."""
    lengths: Mapping[str, int]
    """Lengths of the sketch."""
    blocks: Mapping[str, tuple[str, ...]]
    """Name of a block to its parts."""

    def of(self, lengths: Mapping[str, int], removed: Collection[str] = ()) -> float:
        """Return the cost of the model with some axes at new lengths and without some branches."""
        return sum(part.cost(lengths) for name, part in self.parts.items() if name not in removed)

    @cached_property
    def dense(self) -> float:
        """Cost of the model of the sketch."""
        return self.of({})

    @cached_property
    def first_block(self) -> float:
        """Cost of the first block of the model; without blocks, of the whole model."""
        names = next(iter(self.blocks.values()), tuple(self.parts))
        return sum(self.parts[name].cost({}) for name in names)

    def saving(self, lengths: Mapping[str, int], axis: str) -> float:
        """Return the cost that one index of an axis adds at these lengths."""
        shorter = {**lengths, axis: lengths.get(axis, self.lengths[axis]) - 1}
        own = [part for part in self.parts.values() if axis in part.axes]
        return sum(part.cost(lengths) - part.cost(shorter) for part in own)


def model_costs(sketch: ModelSketch, key: str, axes: Iterable[str], latency: LatencyTable | None) -> ModelCosts:
    """Return the cost that the key of a budget names: `macs`, `params` or `latency`.

    MACs and parameters are counts, latency is in ms for one batch by the table. axes: those whose lengths may change.
    Raises ValueError for a latency without a table.
    """
    owners = _owners(sketch)
    if key == "latency":
        if latency is None:
            raise ValueError("a latency budget needs a table")
        parts = _latency_parts(sketch, latency, owners)
    else:
        free = tuple(axes)
        parts = {
            name: PartCost(frozenset(n for sizes in found for size in sizes for n in size.axes()),
                           polynomial(found, sketch.axes, free))
            for name, found in _products(sketch, key, owners).items()
        }  # fmt: skip
    blocks: dict[str, tuple[str, ...]] = {}
    for branch in sketch.branches:
        if branch.name in parts:
            blocks[branch.block] = (*blocks.get(branch.block, ()), branch.name)
    return ModelCosts(parts, sketch.axes, blocks)


def cost_function(
    sketch: ModelSketch, budget: Budget, axes: Iterable[str], latency: LatencyTable | None
) -> tuple[Costs, float]:
    """Return the cost that a budget limits, as a function of the lengths of `axes`, and its limit.

    Raises ValueError for a latency budget without a table.
    """
    key, share = budget.limit
    costs = model_costs(sketch, key, axes, latency)
    return costs.of, share * costs.dense


def _owners(sketch: ModelSketch) -> dict[frozenset[str], str]:
    """Return the part of each set of branches that encloses a matmul: the branch if it is one that shares no matmul."""
    sets = {p.branches for p in sketch.matmuls} | {o.branches for o in sketch.operators}
    nested = {name for names in sets if len(names) > 1 for name in names}
    return {names: next(iter(names)) if len(names) == 1 and not names & nested else REST for names in sets}


def _products(sketch: ModelSketch, key: str, owners: Mapping[frozenset[str], str]) -> dict[str, list[tuple[Size, ...]]]:
    found: dict[str, list[tuple[Size, ...]]] = {REST: []}
    if key == "macs":
        for p in sketch.matmuls:
            found.setdefault(owners[p.branches], []).append((p.count, p.rows, p.reduce, p.columns))
        return found
    own = {name: branch.name for branch in sketch.branches if branch.name in owners.values()
           for name in branch.parameters}  # fmt: skip
    for name, size in sketch.parameters.items():
        found.setdefault(own.get(name, REST), []).append((size,))
    return found


def _latency_parts(
    sketch: ModelSketch, table: LatencyTable, owners: Mapping[frozenset[str], str]
) -> dict[str, PartCost]:
    matmuls: dict[str, list[Matmul]] = {REST: []}
    operators: dict[str, list[Operator]] = {}
    for p in sketch.matmuls:
        matmuls.setdefault(owners[p.branches], []).append(p)
    for o in sketch.operators:
        operators.setdefault(owners[o.branches], []).append(o)
    at = cache(table.matmul_ms)
    names = dict.fromkeys((*matmuls, *operators))
    return {
        name: _latency_part(
            sketch.axes, matmuls.get(name, ()), operators.get(name, ()), table, at, table.fixed_ms * (name == REST)
        )
        for name in names
    }


def _latency_part(
    axes: Mapping[str, int], matmuls: Sequence[Matmul], operators: Sequence[Operator], table: LatencyTable,
    at: Callable[[tuple[int, int, int, int], bool], float], fixed: float,
) -> PartCost:  # fmt: skip
    sizes = [size for p in matmuls for size in (p.count, p.rows, p.reduce, p.columns)] + [o.elements for o in operators]
    used = frozenset(name for size in sizes for name in size.axes())

    def cost(lengths: Mapping[str, int]) -> float:
        now = {name: lengths.get(name, axes[name]) for name in used}
        total = fixed + sum(at(p.shape(now), not p.weight) for p in matmuls)
        return total + sum(table.operator_ms(o.kind, o.elements.value(now)) for o in operators)

    return PartCost(used, cost)


def polynomial(products: Iterable[tuple[Size, ...]], sizes: Mapping[str, int], axes: Iterable[str]) -> Costs:
    """Return the sum of products of sizes as a function of some axes; all others are folded into the coefficients."""
    free = {name: position + 1 for position, name in enumerate(axes)}
    total: Counter[tuple[int, ...]] = Counter()
    for factors in products:
        for terms in product(*(_folded(size, sizes, free).items() for size in factors)):
            key: tuple[int, ...] = ()
            coefficient = 1
            for names, value in terms:
                key, coefficient = key + names, coefficient * value
            total[tuple(sorted(key))] += coefficient
    degree = max((len(key) for key in total), default=0)
    index = np.array([key + (0,) * (degree - len(key)) for key in total], dtype=np.int64).reshape(len(total), degree)
    coefficients = np.array(list(total.values()), dtype=np.int64)
    start = np.array([1, *(sizes[name] for name in free)], dtype=np.int64)

    def evaluate(lengths: Mapping[str, int]) -> float:
        values = start.copy()
        for name, length in lengths.items():
            values[free[name]] = length
        return float(coefficients @ values[index].prod(axis=1))

    return evaluate


def _folded(size: Size, sizes: Mapping[str, int], free: Mapping[str, int]) -> Counter[tuple[int, ...]]:
    """Return a size as {positions of free axes: coefficient}."""
    found: Counter[tuple[int, ...]] = Counter()
    for factor, names in size.terms:
        fixed = prod(sizes[name] for name in names if name not in free)
        found[tuple(free[name] for name in names if name in free)] += factor * fixed
    return found
