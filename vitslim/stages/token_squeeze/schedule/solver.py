"""Token counts of all blocks that minimize an additive loss within a budget: a dynamic program. No model, no data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CELLS = 512
"""Number of cells into which the costs between the smallest possible total and the budget are divided."""
ROUNDING = 1e-9
"""Tolerance for floating-point rounding when a total is compared with the budget, as a fraction of the budget."""


def least_cost(cost: Floats) -> float:
    """Return the smallest total cost of a schedule; `cost` as in `choose_levels`."""
    return float(_costs_ahead(cost)[0, 0])


def choose_levels(loss: Floats, cost: Floats, budget: float, cells: int = CELLS) -> tuple[int, ...] | None:
    """Return the level after each block that minimizes the total loss with a total cost of at most `budget`.

    Levels 0 to L - 1 stand for falling token counts; level 0 is the count before the first block. loss and cost,
    float64 (blocks, L, L): of a block that receives the tokens of level i and passes on those of level j, read for
    j >= i. Losses are finite, costs not negative; a cost of infinity forbids a pair. None if every schedule costs more
    than the budget.

    Exact for costs that are multiples of a cell, which is 1 / `cells` of the range from the smallest possible total to
    the budget. For other costs, no schedule that costs at least `blocks` cells less than the budget has a lower loss.
    Of schedules with equal loss a cheaper one is chosen. Takes about blocks * L^2 / 2 * cells operations.
    """
    ahead = _costs_ahead(cost)
    spare, margin = budget - ahead[0, 0], ROUNDING * abs(budget)
    if spare < -margin:
        return None
    # Relative to the cheapest way to finish, every cost is at least zero, and only `spare` is left to divide.
    with np.errstate(invalid="ignore"):
        extra = cost + ahead[1:, None, :] - ahead[:-1, :, None]
    width = cells + len(cost) // 2 + 1
    steps = np.where(np.isfinite(extra), np.rint(extra / max(spare / cells, margin, np.finfo(float).tiny)), width)
    bins = np.minimum(steps, width).astype(np.int64)
    table = np.full((cost.shape[1], width), np.inf)
    table[0, 0] = 0.0
    sources = []
    for block_loss, block_bins in zip(loss, bins, strict=True):
        table, source = _after_block(table, block_loss, block_bins)
        sources.append(source)
    for level, cell in _best_first(table):
        chosen = _traced(sources, bins, level, cell)
        if total(cost, chosen) <= budget + margin:
            return chosen
    return None


def total(values: Floats, levels: Sequence[int]) -> float:
    """Return the sum over blocks of the entries, float64 (blocks, L, L), that a schedule passes through."""
    return float(sum(block[i, j] for block, i, j in zip(values, (0, *levels), levels, strict=False)))


def _costs_ahead(cost: Floats) -> Floats:
    """Return the smallest total cost of block b and all later blocks from each level, float64 (blocks + 1, L)."""
    blocks, levels, _ = cost.shape
    ahead = np.zeros((blocks + 1, levels))
    falling = np.arange(levels)[:, None] <= np.arange(levels)
    for block in reversed(range(blocks)):
        ahead[block] = np.where(falling, cost[block] + ahead[block + 1], np.inf).min(axis=1)
    return ahead


def _after_block(table: Floats, loss: Floats, bins: Ints) -> tuple[Floats, npt.NDArray[np.int16]]:
    """Return the table after one more block, and the level before it of each entry.

    table, float64 (L, width): smallest loss with which a level is reached at a number of cells.
    """
    levels, width = table.shape
    new, sources = np.full_like(table, np.inf), np.full(table.shape, -1, dtype=np.int16)
    for level in np.flatnonzero(np.isfinite(table).any(axis=1)):
        after = slice(level, levels)
        shifted = sliding_window_view(np.concatenate([np.full(width, np.inf), table[level]]), width)
        candidates = shifted[width - bins[level, after]]  # each row moved to the right by its number of cells
        candidates += loss[level, after, None]
        better = candidates < new[after]
        np.copyto(new[after], candidates, where=better)
        sources[after][better] = level
    return new, sources


def _best_first(table: Floats) -> Iterator[tuple[int, int]]:
    """Yield the entries that are reached, lowest loss first; of equal ones, the cheaper first."""
    cells, levels = np.nonzero(np.isfinite(table).T)
    for index in np.argsort(table[levels, cells], kind="stable"):
        yield int(levels[index]), int(cells[index])


def _traced(sources: Sequence[npt.NDArray[Any]], bins: Ints, level: int, cell: int) -> tuple[int, ...]:
    """Return the levels after each block of the schedule that ends in an entry of the last table."""
    chosen = []
    for source, block in zip(reversed(sources), reversed(bins), strict=True):
        chosen.append(level)
        before = int(source[level, cell])
        cell -= int(block[before, level])
        level = before
    return tuple(reversed(chosen))
