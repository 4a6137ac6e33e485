"""The units that remain after one pruning step: by thresholds, as published, or by the solver."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
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
    """Cost at which pruning ends. A measurement may correct it between steps."""

    def limit_at(self, targets: Sequence[float]) -> float:
        """Return the limit of this step. targets: the fraction of the dense cost after each step; the last: the end."""
        return self.limit * targets[min(self.number, len(targets) - 1)] / targets[-1]


class Allocator(Protocol):
    """Chooses the units that remain after one pruning step."""

    def next_units(self, step: Step) -> Units:
        """Return the units after the step; removed ones stay removed."""
        ...


@dataclass(frozen=True)
class PublishedAllocator:
    """Removes the groups with the lowest scores of the whole model, as many as the limit of the step needs."""

    structures: tuple[Structure, ...]
    costs: ModelCosts
    eta: float
    """In units of saliency for each unit of cost."""
    per_step: int | None
    """Units that a step removes at most, as published; None: no limit."""
    targets: tuple[float, ...]
    """Fraction of the dense cost after each step, falling. The last one is the budget."""

    def next_units(self, step: Step) -> Units:
        """Return the units after the step; with `per_step`, the number of removed groups grows with that of steps."""
        floors = {one.axis: one.group for one in self.structures}
        credit = unit_credits(self.costs, step.units.lengths, floors, self.eta)
        scores = ranked_scores({axis: step.saliency[axis] for axis in floors}, credit)
        groups = {one.axis: unit_groups(scores[one.axis], step.units.alive[one.axis], one.group)
                  for one in self.structures}  # fmt: skip

        def after(position: int) -> Units:
            lost = removed_units(groups, scores, position)
            return Units({axis: _without(units, lost.get(axis)) for axis, units in step.units.alive.items()})

        count = sum(map(len, groups.values()))
        most = count if self.per_step is None else min(count, threshold_position(step.number, self.per_step))
        limit = step.limit_at(self.targets)
        return after(bisect_left(range(most), True, key=lambda at: self.costs.of(after(at).lengths) <= limit))


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
        """Return the units with the largest saliency in each axis, as many as the solver chooses."""
        problem = Allocation(self.structures, self.costs, step.saliency, step.units, self.removable)
        lengths, removed = solve_widths(problem, step.limit_at(self.targets))
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
