"""The length of each axis after structural pruning, computed from the sketch alone.

`plan` and the stage call the same function, so that the result equals the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitslim.errors import Problem
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import DepGraph
from vitslim.results import LayerNote
from vitslim.stages.prune.depgraph.budget import Schedule, fit
from vitslim.stages.prune.depgraph.targets import Target, find_targets
from vitslim.stages.prune.model_costs import Lengths, cost_function

if TYPE_CHECKING:
    from vitslim.results import LatencyTable

WORDS = {"macs": "MACs", "params": "parameters", "latency": "latency"}
"""Keys of a budget, with their names in messages."""


@dataclass(frozen=True)
class Cuts:
    """The cuts of a stage."""

    keep: dict[str, int]
    """Axis name to its number of kept indices; only axes that lose some."""
    skipped: tuple[LayerNote, ...]
    """Axes that stay whole, each with its reason."""
    problems: tuple[Problem, ...] = ()
    """Reasons why the recipe does not fit this model; then `keep` is empty."""


def choose_cuts(sketch: ModelSketch, config: DepGraph, latency: LatencyTable | None = None) -> Cuts:
    """Return the lengths of a recipe, within its budget where it has one.

    Every axis is cut by its own ratio. For a scope that ranks the indices of several axes together, this is the split
    that equal scores would give. `latency` is the table of a latency budget.
    """
    targets = find_targets(sketch, config)
    if targets.problems or not targets.cut:
        return Cuts({}, targets.skipped, targets.problems)
    plan = plan_lengths(sketch, config, targets.cut, latency, local_schedule(targets.cut))
    if isinstance(plan, Problem):
        return Cuts({}, targets.skipped, (plan,))
    keep = plan(1.0)
    return Cuts({t.axis: keep[t.axis] for t in targets.cut if keep[t.axis] < t.size}, targets.skipped)


def local_schedule(targets: tuple[Target, ...]) -> Schedule:
    """Return the schedule by which every axis is cut by its own ratio times the factor."""
    return lambda factor: {target.axis: target.length(factor) for target in targets}


def plan_lengths(
    sketch: ModelSketch,
    config: DepGraph,
    targets: tuple[Target, ...],
    latency: LatencyTable | None,
    schedule: Schedule,
) -> Schedule | Problem:
    """Return the lengths as a function of progress; at 1 the recipe's ratios or its budget are reached.

    Returns a Problem for a budget that cannot be reached.
    """
    budget = config.budget
    if budget is None:
        return schedule
    key, share = budget.limit
    if key == "latency" and latency is None:
        message = f"a latency budget needs a latency table, got none at {budget.table or 'budget.table'}"
        return Problem("budget.table", message, "`vitslim bench --table MODEL` writes one")
    costs, limit = cost_function(sketch, budget, [target.axis for target in targets], latency)
    # At this factor every axis has reached its limit.
    most = 1 / min(target.ratio for target in targets)
    found = fit(schedule, costs, limit, most)
    if found is None:
        reach = costs(schedule(most)) / costs({})
        message = f"{share:g} of the {WORDS[key]} cannot be reached: {reach:.3f} remains with every axis at its limit"
        hint = "raise the budget or max_pruning_ratio, lower round_to, or prune more axes"
        return Problem(f"budget.{key}", message, hint)
    return _scaled(schedule, *found)


def _scaled(schedule: Schedule, factor: float, final: Lengths) -> Schedule:
    """Return the schedule of all steps; no axis is ever shorter than its final length."""
    return lambda progress: {
        axis: final[axis] if progress >= 1 else max(final[axis], length)
        for axis, length in schedule(factor * progress).items()
    }
