"""The dynamic program of token schedules against exhaustive search, and its properties."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.stages.token_squeeze.schedule.solver import CELLS, Floats, choose_levels, least_cost, total


def schedules(blocks: int, levels: int) -> list[tuple[int, ...]]:
    return list(combinations_with_replacement(range(levels), blocks))


def instance(seed: int, blocks: int, levels: int, forbidden: float = 0.0) -> tuple[Floats, Floats]:
    """Random losses and whole costs that fall with the number of tokens; staying at a level is always allowed."""
    rng = np.random.default_rng(seed)
    loss = np.abs(rng.standard_normal((blocks, levels, levels)))
    falling = np.arange(levels, 0, -1)
    cost = (rng.integers(1, 9, (blocks, 1, 1)) * (falling[:, None] + falling)).astype(float)
    gaps = rng.random(cost.shape) < forbidden
    gaps[:, range(levels), range(levels)] = False
    cost[gaps] = np.inf
    return loss, cost


def best_by_search(loss: Floats, cost: Floats, budget: float) -> float:
    found = schedules(len(cost), cost.shape[1])
    return min((total(loss, s) for s in found if total(cost, s) <= budget), default=np.inf)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    blocks=st.integers(1, 4),
    levels=st.integers(1, 6),
    share=st.floats(0, 1.2),
    forbidden=st.sampled_from([0.0, 0.4]),
)
def test_the_schedule_is_the_best_of_all(seed: int, blocks: int, levels: int, share: float, forbidden: float) -> None:
    loss, cost = instance(seed, blocks, levels, forbidden)
    dense = total(cost, [0] * blocks)
    budget = float(round(share * dense))
    cells = max(1, round(budget - least_cost(cost)))  # one cell for each unit of cost
    chosen = choose_levels(loss, cost, budget, cells)
    if chosen is None:
        assert best_by_search(loss, cost, budget) == np.inf
        assert budget < least_cost(cost)
    else:
        assert total(cost, chosen) <= budget
        assert total(loss, chosen) == pytest.approx(best_by_search(loss, cost, budget), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), blocks=st.integers(1, 4), levels=st.integers(2, 6), share=st.floats(0, 1))
def test_with_few_cells_the_schedule_is_as_good_as_all_that_leave_a_cell_for_each_block(
    seed: int, blocks: int, levels: int, share: float
) -> None:
    loss, cost = instance(seed, blocks, levels)
    cost *= np.random.default_rng(seed).uniform(0.9, 1.1, cost.shape)
    least, dense = least_cost(cost), total(cost, [0] * blocks)
    budget, cells = least + share * max(0.0, dense - least), 20
    chosen = choose_levels(loss, cost, budget, cells)
    assert chosen is not None
    assert total(cost, chosen) <= budget * (1 + 1e-9)
    reduced = budget - blocks * (budget - least) / cells
    assert total(loss, chosen) <= best_by_search(loss, cost, reduced) + 1e-12


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rate=st.floats(0.4, 0.98))
def test_the_schedule_is_within_budget_and_not_worse_than_a_uniform_keep_rate(seed: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    counts = np.arange(49, 0, -1.0)
    kept = np.minimum(counts / counts[:, None], 1)
    loss = rng.random((12, 1, 1)) * (1 - kept) ** rng.uniform(1, 2)
    cost = np.repeat((counts[:, None] ** 2 / 8 + 10 * counts[:, None] + 25 * counts)[None], 12, axis=0)
    uniform, level = [], 0
    for block in range(12):
        if block % 3 == 0 and block:
            level = 49 - int(np.ceil(rate * counts[level]))
        uniform.append(level)
    cell = (total(cost, uniform) - least_cost(cost)) / CELLS
    budget = total(cost, uniform) + 12 * cell
    chosen = choose_levels(loss, cost, budget)
    assert chosen is not None
    assert all(before <= after for before, after in pairwise((0, *chosen)))
    assert total(cost, chosen) <= budget
    assert total(loss, chosen) <= total(loss, uniform) + 1e-12


def test_a_budget_below_the_cheapest_schedule_is_unreachable() -> None:
    loss, cost = instance(0, 3, 5)
    assert choose_levels(loss, cost, least_cost(cost) - 1) is None
    chosen = choose_levels(loss, cost, least_cost(cost))
    assert chosen is not None
    assert total(cost, chosen) == least_cost(cost)


def test_of_equal_losses_the_cheaper_schedule_is_chosen() -> None:
    _, cost = instance(0, 3, 5)
    assert choose_levels(np.zeros_like(cost), cost, total(cost, [0, 0, 0])) == (4, 4, 4)
