"""Search for the common factor on all pruning ratios with which the model fits a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from vitslim.graph.sketch import ModelSketch, Size
from vitslim.recipe.stages import Budget

if TYPE_CHECKING:
    from vitslim.results import LatencyTable

Lengths = dict[str, int]
"""Axis name to its number of kept indices."""

Schedule = Callable[[float], Lengths]
"""Lengths for a factor on all ratios; a larger factor never gives a longer axis."""

Costs = Callable[[Mapping[str, int]], float]
"""Cost of the model with some axes at new lengths."""

TOLERANCE = 0.01
"""Fraction of a budget that may stay unused before the search continues."""

MAX_SEARCHES = 6

MAX_BISECTIONS = 32


def cost_function(
    sketch: ModelSketch, budget: Budget, axes: Iterable[str], latency: LatencyTable | None
) -> tuple[Costs, float]:
    """Return the cost that a budget limits, as a function of the lengths of `axes`, and its limit.

    MACs and parameters are counts, latency is in ms for one image by the table. Raises ValueError for a latency budget
    without a table.
    """
    if budget.macs is not None:
        sizes = ((p.count, p.rows, p.reduce, p.columns) for p in sketch.matmuls)
        costs, share = _polynomial(sizes, sketch.axes, axes), budget.macs
    elif budget.params is not None:
        costs, share = _polynomial(((size,) for size in sketch.parameters.values()), sketch.axes, axes), budget.params
    elif budget.latency is not None and latency is not None:
        costs, share = _latency(sketch, latency), budget.latency
    else:
        raise ValueError("a latency budget needs a table")
    return costs, share * costs({})


def fit(schedule: Schedule, costs: Costs, limit: float, most: float) -> tuple[float, Lengths] | None:
    """Return the smallest factor up to `most` whose lengths cost at most `limit`, and lengths that use the rest of it.

    Several axes can lose a step at the same factor. Each of them gets its step back while the cost stays within the
    limit. While more than TOLERANCE of the limit is unused, the axes whose step is too large are fixed and the search
    continues with the others. None when the lengths at `most` cost more than the limit.
    """
    if costs(schedule(most)) > limit:
        return None
    factor = high = most
    settled: Lengths = {}
    for search in range(MAX_SEARCHES):
        high, larger, smaller = _bisect(lambda f: schedule(f) | settled, costs, limit, high)  # noqa: B023
        if search == 0:
            factor = high
        for axis in smaller:
            if larger[axis] > smaller[axis] and costs(smaller | {axis: larger[axis]}) <= limit:
                smaller = smaller | {axis: larger[axis]}
        too_large = {axis: length for axis, length in smaller.items() if larger[axis] > length}
        if not too_large or costs(smaller) >= (1 - TOLERANCE) * limit:
            break
        settled |= too_large
    return factor, smaller


def _bisect(schedule: Schedule, costs: Costs, limit: float, high: float) -> tuple[float, Lengths, Lengths]:
    """Return the smallest factor that fits, the lengths just below it, and its own lengths; `high` must fit."""
    low = 0.0
    larger, smaller = schedule(low), schedule(high)
    if costs(larger) <= limit:
        return low, larger, larger
    for _ in range(MAX_BISECTIONS):
        if high - low < 1e-6 * high:
            break
        middle = (low + high) / 2
        lengths = schedule(middle)
        if costs(lengths) > limit:
            low, larger = middle, lengths
        else:
            high, smaller = middle, lengths
    return high, larger, smaller


def gemms(sketch: ModelSketch, lengths: Mapping[str, int]) -> list[tuple[int, int, int, int]]:
    """Return (count, rows, reduce, columns) of every matmul for one image, with some axes at new lengths."""
    axes = {**sketch.axes, **lengths}
    return [p.shape(axes) for p in sketch.matmuls]


def _latency(sketch: ModelSketch, table: LatencyTable) -> Costs:
    return lambda lengths: table.estimate_ms(gemms(sketch, lengths))


def _polynomial(products: Iterable[tuple[Size, ...]], sizes: Mapping[str, int], axes: Iterable[str]) -> Costs:
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
