"""The units that remain after one pruning step: by thresholds, as published, or by the solver."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitslim.stages.prune.model_costs import ModelCosts
from vitslim.stages.prune.nvit.latency_credit import ranked_scores, unit_credits
from vitslim.stages.prune.nvit.solver import Allocation, solve_widths
from vitslim.stages.prune.nvit.structures import Structure
from vitslim.stages.prune.nvit.thresholds import removed_units, threshold_position, unit_groups
from vitslim.stages.prune.nvit.units import Units


@dataclass(frozen=True)
class Step:
    """Everything that one pruning step depends on."""

    saliency: Mapping[str, Tensor]
    """Of each unit, float64 (size,) by axis; zero for removed units."""
    units: Units
    """Before the step."""
    number: int
    """Number of pruning steps before this one."""
    limit: float
    """Cost at which pruning ends."""


class Allocator(Protocol):
    """Chooses the units that remain after one pruning step."""

    def next_units(self, step: Step) -> Units:
        """Return the units after the step; removed ones stay removed."""
        ...


@dataclass(frozen=True)
class PublishedAllocator:
    """Removes the groups with the lowest scores of the whole model, about `per_step` units a step.

    The last step removes only as many as the limit needs.
    """

    structures: tuple[Structure, ...]
    costs: ModelCosts
    eta: float
    """In units of saliency for each unit of cost."""
    per_step: int

    def next_units(self, step: Step) -> Units:
        """Return the units after the step; the number of removed groups grows with the number of steps."""
        floors = {one.axis: one.group for one in self.structures}
        credit = unit_credits(self.costs, step.units.lengths, floors, self.eta)
        scores = ranked_scores({axis: step.saliency[axis] for axis in floors}, credit)
        groups = {one.axis: unit_groups(scores[one.axis], step.units.alive[one.axis], one.group)
                  for one in self.structures}  # fmt: skip

        def after(position: int) -> Units:
            lost = removed_units(groups, scores, position)
            return Units({axis: _without(units, lost.get(axis)) for axis, units in step.units.alive.items()})

        position = threshold_position(step.number, self.per_step)
        enough = bisect_left(range(position), True, key=lambda at: self.costs.of(after(at).lengths) <= step.limit)
        return after(enough)


@dataclass(frozen=True)
class SolverAllocator:
    """Chooses all widths at once for a budget, and the branches that stay."""

    structures: tuple[Structure, ...]
    costs: ModelCosts
    removable: frozenset[str]
    """Branches that may be removed."""
    targets: tuple[float, ...]
    """Fraction of the dense cost after each step, falling. The last one is the budget."""

    def next_units(self, step: Step) -> Units:
        """Return the units with the largest saliency in each axis, as many as the solver chooses.

        The limit of a step before the last is scaled with the limit of the run, which a measurement may correct.
        """
        at = min(step.number, len(self.targets) - 1)
        limit = step.limit * self.targets[at] / self.targets[-1]
        problem = Allocation(self.structures, self.costs, step.saliency, step.units, self.removable)
        lengths, removed = solve_widths(problem, limit)
        alive = {
            axis: _strongest(step.saliency[axis], units, lengths[axis]) for axis, units in step.units.alive.items()
        }
        return Units(alive, removed)


def _without(units: Tensor, lost: Tensor | None) -> Tensor:
    if lost is None:
        return units
    after = units.clone()
    after[lost] = False
    return after


def _strongest(saliency: Tensor, alive: Tensor, count: int) -> Tensor:
    """Return which `count` living units have the largest saliency; of equal ones the lower index is kept."""
    order = torch.sort(torch.where(alive, saliency, -1.0), descending=True, stable=True).indices
    found = torch.zeros_like(alive)
    found[order[:count]] = True
    return found
