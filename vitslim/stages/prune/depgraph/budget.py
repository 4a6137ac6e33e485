"""Search for the common factor on all pruning ratios with which the model fits a budget."""

from __future__ import annotations

from collections.abc import Callable

from vitslim.stages.prune.model_costs import Costs, Lengths

Schedule = Callable[[float], Lengths]
"""Lengths for a factor on all ratios; a larger factor never gives a longer axis."""

TOLERANCE = 0.01
"""Fraction of a budget that may stay unused before the search continues."""

MAX_SEARCHES = 6

MAX_BISECTIONS = 32


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
