"""The plan of a pruning run: from a recipe's config and a model's sketch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Nvit
from vitslim.stages.prune.model_costs import ModelCosts
from vitslim.stages.prune.nvit import reach
from vitslim.stages.prune.nvit.allocation import Allocator, PublishedAllocator, SolverAllocator
from vitslim.stages.prune.nvit.latency_credit import scaled_eta
from vitslim.stages.prune.nvit.pruner import Plan
from vitslim.stages.prune.nvit.saliency import Linked, gate_scaling, published_scaling
from vitslim.stages.prune.nvit.structures import Structures
from vitslim.stages.prune.nvit.units import Units

if TYPE_CHECKING:
    from vitslim.results import LatencyTable

MS_PER_S = 1e3


def whole_units(found: Structures) -> Units:
    """Return the units before pruning: all are alive."""
    return Units({one.axis: torch.ones(one.size, dtype=torch.bool) for one in found.pruned})


def make_plan(
    sketch: ModelSketch,
    found: Structures,
    linked: Sequence[Linked],
    config: Nvit,
    latency: LatencyTable | None,
    correct: Callable[[Units, float], float] | None,
) -> Plan:
    """Return the plan of a run. correct: the correction of the limit by measurement; None without one."""
    costs = reach.costs(sketch, found, config, latency)
    return Plan(
        sketch=sketch,
        costs=costs,
        linked=tuple(linked),
        scaling=gate_scaling(linked, found.kinds)
        if config.allocation == "solver"
        else published_scaling(linked, found.kinds, len(sketch.blocks)),
        allocator=_allocator(sketch, found, config, costs),
        snapshots=config.snapshots,
        interval=config.interval,
        momentum=config.momentum,
        updates_weights=config.update_weights,
        correct=correct or (lambda _, limit: limit),
    )


def step_targets(config: Nvit) -> tuple[float, ...]:
    """Return the fraction of the dense cost after each pruning step: equal steps, and the snapshots."""
    share, steps = config.budget.limit[1], config.steps or 1
    equal = {1 - (1 - share) * step / steps for step in range(1, steps)}
    return tuple(sorted({*equal, *config.snapshots.values(), share}, reverse=True))


def removable_branches(sketch: ModelSketch, config: Nvit, costs: ModelCosts) -> frozenset[str]:
    """Return the branches that the solver may remove as a whole."""
    if not config.remove_blocks:
        return frozenset()
    return frozenset(branch.name for branch in sketch.branches if not branch.obstacle and branch.name in costs.parts)


def _allocator(sketch: ModelSketch, found: Structures, config: Nvit, costs: ModelCosts) -> Allocator:
    if config.allocation == "solver":
        return SolverAllocator(found.pruned, costs, removable_branches(sketch, config, costs), step_targets(config))
    eta = scaled_eta(config.eta, costs.first_block) if config.eta_rescale else config.eta / MS_PER_S
    if config.steps is None:
        return PublishedAllocator(found.pruned, costs, eta, config.per_step, (config.budget.limit[1],))
    return PublishedAllocator(found.pruned, costs, eta, None, step_targets(config))
