"""Numbers of tokens that come from learned rates and meet a number of MACs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vitslim.graph.edits.merge_tokens import KeptTokens
from vitslim.stages.token_squeeze.merging.rates import kept_count

RATE_MAX = 0.95
"""Largest rate of a block after scaling."""
HALVINGS = 40
"""Steps of the bisection."""
MOVES = 200
"""Largest number of steps of the final search."""

Counts = dict[str, KeptTokens]


def scaled_counts(rates: Mapping[str, tuple[float, float]], patches: int, factor: float) -> Counts:
    """Return the counts of each block for rates times a factor.

    rates: block name, in graph order, to the rates at which its tokens are dropped and the rest is merged. patches:
    patch tokens before the first of them.
    """
    counts: Counts = {}
    left = patches
    for name, (prune, merge) in rates.items():
        survivors = kept_count(min(prune * factor, RATE_MAX), left)
        left = kept_count(min(merge * factor, RATE_MAX), survivors)
        counts[name] = KeptTokens(survivors, left)
    return counts


def counts_for(
    rates: Mapping[str, tuple[float, float]], patches: int, target: float, macs: Callable[[Counts], float]
) -> Counts:
    """Return counts whose MACs are nearest to a target.

    The factor of all rates is found by bisection; then single tokens are moved into or out of blocks as long as the
    distance falls. macs: the MACs of counts, which fall as rates rise, in the unit of `target`.
    """
    low, high = 0.0, 1.0
    while macs(scaled_counts(rates, patches, high)) > target and high < 1e6:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if macs(scaled_counts(rates, patches, middle)) > target:
            low = middle
        else:
            high = middle
    ends = [scaled_counts(rates, patches, factor) for factor in (low, high)]
    return _refined(min(ends, key=lambda counts: abs(macs(counts) - target)), patches, target, macs)


def _refined(counts: Counts, patches: int, target: float, macs: Callable[[Counts], float]) -> Counts:
    distance = abs(macs(counts) - target)
    for _ in range(MOVES):
        moves = [moved for name in counts for by in (-1, 1) if (moved := _moved(counts, name, by, patches))]
        best = min(moves, key=lambda moved: abs(macs(moved) - target), default=counts)
        if abs(macs(best) - target) >= distance:
            break
        counts, distance = best, abs(macs(best) - target)
    return counts


def _moved(counts: Counts, name: str, by: int, patches: int) -> Counts | None:
    """Return counts in which one block and all after it keep `by` more tokens; None if the tokens do not suffice."""
    found: Counts = {}
    left, offset = patches, 0
    for block, (survivors, keep) in counts.items():
        offset = by if block == name else offset
        count = KeptTokens(min(survivors + offset, left), keep + offset)
        if not 1 <= count.keep <= count.survivors:
            return None
        found[block], left = count, count.keep
    return found
