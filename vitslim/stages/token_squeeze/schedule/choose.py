"""Choice of a schedule: from losses and costs of single blocks to the number of tokens that each block keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

from vitslim.recipe.stages.token_squeeze import DEFAULT_BLOCKS
from vitslim.stages.token_squeeze.schedule.costs import ScheduleCosts
from vitslim.stages.token_squeeze.schedule.solver import Floats, choose_levels

KEEP_RATES = (0.9, 0.7, 0.5, 0.3, 0.15)
"""Fractions of the patch tokens at which the loss of each block is measured; the last is the fewest that ever stay."""
LEVELS = 100
"""Largest number of token counts that the solver distinguishes."""


def possible_counts(patches: int) -> tuple[int, ...]:
    """Return the numbers of patch tokens that a block may pass on, falling, from all to the smallest keep rate."""
    least = max(1, round(KEEP_RATES[-1] * patches))
    step = -(-(patches - least) // LEVELS) or 1
    return (*range(patches, least, -step), least) if patches > least else (patches,)


def measured_counts(patches: int) -> tuple[int, ...]:
    """Return the numbers of kept patch tokens at which losses are measured, falling and without `patches` itself."""
    counts = dict.fromkeys(max(1, round(rate * patches)) for rate in KEEP_RATES)
    return tuple(count for count in counts if count < patches)


def pair_losses(losses: Mapping[str, Sequence[float]], costs: ScheduleCosts, added: int) -> Floats:
    """Return the loss of each block for received and passed on tokens, float64 (blocks, counts, counts).

    losses: for some blocks, the loss at each of `measured_counts` when the block alone is squeezed. A monotone curve
    through them gives the counts between: the loss grows faster than the number of removed tokens, so straight lines
    would favor the measured counts. A block that receives i tokens and passes on j adds the difference of its losses
    at j and at i: the tokens that an earlier block removed are the ones that this block would have removed first. For
    a single squeezed block this is the measured loss.
    """
    counts = np.asarray(costs.counts, dtype=np.float64)
    found = np.zeros(costs.cost.shape)
    passed_on = np.array([kept + added for kept in measured_counts(int(counts[0]))])
    fewer = passed_on < counts[0]
    if not fewer.any():
        return found
    points = np.array((counts[0], *passed_on[fewer]))
    for position, name in enumerate(costs.blocks):
        if name in losses:
            rising = np.maximum.accumulate((0.0, *np.asarray(losses[name])[fewer]))
            single = PchipInterpolator(-points, rising)(-counts)
            found[position] = np.maximum(0.0, single - single[:, None])
    return found


def choose_schedule(losses: Floats, costs: ScheduleCosts, budget: float) -> tuple[int, ...]:
    """Return the levels of the schedule with the smallest loss that costs at most `budget`.

    Raises ValueError if every schedule costs more than the budget.
    """
    found = choose_levels(losses, costs.cost, budget - costs.fixed)
    if found is None:
        raise ValueError("every schedule costs more than the budget")
    return found


def uniform_schedule(costs: ScheduleCosts, candidates: Collection[int], budget: float) -> tuple[int, ...]:
    """Return the levels for the largest common keep rate with which the model costs at most `budget`.

    At DEFAULT_BLOCKS if they suffice, else at all candidates, else the cheapest schedule. Raises ValueError if
    that costs more than the budget.
    """
    for positions in ([p for p in DEFAULT_BLOCKS if p in candidates], candidates):
        for rate in np.linspace(1, KEEP_RATES[-1], 400):
            levels = _uniform_levels(costs, positions, rate)
            if costs.of(levels) <= budget:
                return levels
    return choose_schedule(np.zeros_like(costs.cost), costs, budget)


def _uniform_levels(costs: ScheduleCosts, positions: Collection[int], rate: float) -> tuple[int, ...]:
    counts, level, levels = np.asarray(costs.counts), 0, []
    for position in range(len(costs.blocks)):
        if position in positions:
            level = min(int(np.searchsorted(-counts, -rate * counts[level])), len(counts) - 1)
        levels.append(level)
    return tuple(levels)


def kept_tokens(levels: Sequence[int], costs: ScheduleCosts, added: int) -> dict[str, int]:
    """Return the number of kept patch tokens of each block that a schedule squeezes, by block name."""
    before = (0, *levels)
    return {
        name: costs.counts[level] - added
        for name, level, previous in zip(costs.blocks, levels, before, strict=False)
        if level > previous
    }
