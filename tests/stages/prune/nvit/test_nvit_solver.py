"""The solver of widths against all possible choices."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from vitslim.errors import StageError
from vitslim.stages.prune.model_costs import ModelCosts, PartCost
from vitslim.stages.prune.nvit.solver import Allocation, Option, choose_options, pareto, solve_widths
from vitslim.stages.prune.nvit.structures import Structure
from vitslim.stages.prune.nvit.units import Units

BLOCKS = ("b.0", "b.1")


def part(block: str) -> PartCost:
    """A branch of width w on an embedding of width e: costs 2 * e * w + e."""

    def cost(lengths: dict[str, int]) -> float:
        e, w = lengths.get("embed", 4), lengths.get(f"{block}.mlp", 4)
        return 2.0 * e * w + e

    return PartCost(frozenset({"embed", f"{block}.mlp"}), cost)  # type: ignore[arg-type]


def problem(seed: int, removable: bool = True) -> Allocation:
    generator = torch.Generator().manual_seed(seed)
    axes = ("embed", *(f"{block}.mlp" for block in BLOCKS))
    parts = {block: part(block) for block in BLOCKS}
    parts[""] = PartCost(frozenset({"embed"}), lambda lengths: 3.0 * lengths.get("embed", 4))
    return Allocation(
        structures=tuple(Structure(axis, "embed" if axis == "embed" else "mlp", 4, 1) for axis in axes),
        costs=ModelCosts(parts, dict.fromkeys(axes, 4), {}),
        saliency={axis: torch.rand(4, generator=generator).double() for axis in axes},
        units=Units({axis: torch.ones(4, dtype=torch.bool) for axis in axes}),
        removable=frozenset(BLOCKS) if removable else frozenset(),
    )


def lost(found: Allocation, lengths: dict[str, int], removed: frozenset[str]) -> float:
    kept = {axis: n for axis, n in lengths.items() if axis.rpartition(".")[0] not in removed}
    return found.loss_of(kept) + sum(found.removal_loss(block) for block in removed)


def brute_force(found: Allocation, limit: float) -> float:
    best = np.inf
    for e, first, second in product(range(1, 5), range(5), range(5)):
        widths = dict(zip(BLOCKS, (first, second), strict=True))
        removed = frozenset(block for block, width in widths.items() if width == 0)
        if removed - found.removable or len(removed) == len(BLOCKS):
            continue
        lengths = {"embed": e} | {f"{block}.mlp": max(1, width) for block, width in widths.items()}
        if found.costs.of(lengths, removed) <= limit:
            best = min(best, lost(found, lengths, removed))
    return best


@pytest.mark.parametrize("removable", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_no_choice_loses_less(seed: int, removable: bool) -> None:
    found = problem(seed, removable)
    for share in (0.25, 0.4, 0.7, 1.0):
        limit = share * found.costs.dense
        lengths, removed = solve_widths(found, limit)
        assert found.costs.of(lengths, removed) <= limit
        assert lost(found, lengths, removed) == pytest.approx(brute_force(found, limit))


def test_units_that_are_gone_stay_gone() -> None:
    found = problem(0)
    alive = dict(found.units.alive) | {"b.0.mlp": torch.tensor([True, True, False, False])}
    later = Allocation(found.structures, found.costs, found.saliency, Units(alive, frozenset({"b.1"})), found.removable)
    lengths, removed = solve_widths(later, found.costs.dense)
    assert lengths["b.0.mlp"] == 2
    assert removed == {"b.1"}


def test_a_limit_out_of_reach_names_what_can_be_reached() -> None:
    found = problem(0, removable=False)
    least = found.costs.of({"embed": 1, "b.0.mlp": 1, "b.1.mlp": 1}) / found.costs.dense
    with pytest.raises(StageError, match=f"0.010 of the cost cannot be reached: {least:.3f} remains"):
        solve_widths(found, 0.01 * found.costs.dense)


def test_options_that_are_worse_in_both_are_dropped() -> None:
    options = [Option(1, 5, {}), Option(2, 6, {}), Option(3, 1, {}), Option(3, 0.5, {}), Option(0, 9, None)]
    assert [(o.cost, o.loss) for o in pareto(options)] == [(0, 9), (1, 5), (3, 0.5)]


def test_at_least_one_branch_stays() -> None:
    worthless = [[Option(0, 0, None), Option(1, -1e-9, {"w": 1})], [Option(0, 0, None), Option(2, -1e-9, {"v": 1})]]
    found = choose_options(worthless, 1.0)
    assert found is not None
    assert [option.lengths for option in found] == [{"w": 1}, None]
    assert choose_options(worthless, 0.5) is None
