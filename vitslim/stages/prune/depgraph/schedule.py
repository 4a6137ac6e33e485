"""Which axes are cut, and to what length: the policy of structural pruning, decided on the sketch alone.

`plan` and the stage itself ask the same function, so what was announced is what happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitslim.errors import Problem
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Budget, DepGraph
from vitslim.results import LayerNote
from vitslim.stages.prune.depgraph.budget import Lengths, Schedule, cost_function, fit
from vitslim.stages.prune.depgraph.targets import Target, find_targets

if TYPE_CHECKING:
    from vitslim.results import LatencyTable

WORDS = {"macs": "MACs", "params": "parameters", "latency": "latency"}
"""What each key of a budget counts."""


@dataclass(frozen=True)
class Cuts:
    """What a stage will cut."""

    keep: dict[str, int]
    """Axis name to the number of indices that stay, less than there are."""
    skipped: tuple[LayerNote, ...]
    """Axes of the mode that stay whole, each with its reason."""
    problems: tuple[Problem, ...] = ()
    """Why the recipe does not fit this model; then nothing is kept."""


def choose_cuts(sketch: ModelSketch, config: DepGraph, latency: LatencyTable | None = None) -> Cuts:
    """The lengths that a recipe asks for, within the budget where it has one.

    Every axis is cut by its own ratio. Where the recipe ranks the indices of several axes together, scores decide
    about lengths, and this is the split that they would give if all axes mattered alike. `latency` is the table of a
    latency budget.
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
    """Every axis is cut by its own ratio times the factor."""
    return lambda factor: {target.axis: target.length(factor) for target in targets}


def plan_lengths(
    sketch: ModelSketch,
    config: DepGraph,
    targets: tuple[Target, ...],
    latency: LatencyTable | None,
    schedule: Schedule,
) -> Schedule | Problem:
    """Lengths as a function of progress from 0 to 1, at which the recipe's ratios or its budget are reached.

    A Problem when the budget cannot be reached.
    """
    budget = config.budget
    if budget is None:
        return schedule
    key, share = spoken_of(budget)
    if key == "latency" and latency is None:
        message = f"a latency budget needs a latency table, and there is none at {budget.table or 'budget.table'}"
        return Problem("budget.table", message, "`vitslim bench --table FILE` writes one")
    costs, limit = cost_function(sketch, budget, [target.axis for target in targets], latency)
    # Beyond this factor every axis has lost all that it may lose.
    most = 1 / min(target.ratio for target in targets)
    found = fit(schedule, costs, limit, most)
    if found is None:
        reach = costs(schedule(most)) / costs({})
        message = f"{share:g} of the {WORDS[key]} cannot be reached: with every axis cut to its limit {reach:.3f} stays"
        return Problem(f"budget.{key}", message, "raise the budget or max_ratio, lower round_to, or cut more axes")
    return _scaled(schedule, *found)


def _scaled(schedule: Schedule, factor: float, final: Lengths) -> Schedule:
    """On the way no axis is cut further than it will be in the end."""
    return lambda progress: {
        axis: final[axis] if progress >= 1 else max(final[axis], length)
        for axis, length in schedule(factor * progress).items()
    }


def spoken_of(budget: Budget) -> tuple[str, float]:
    """The one key of a budget that is set, and the share that may stay."""
    return next((key, share) for key in WORDS if (share := getattr(budget, key)) is not None)
