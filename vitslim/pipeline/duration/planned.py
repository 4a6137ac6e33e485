"""The durations of a plan."""

from __future__ import annotations

from vitslim.pipeline.duration.counts import planned_counts
from vitslim.pipeline.duration.estimate import measuring_seconds, stage_seconds
from vitslim.pipeline.duration.probe import probe
from vitslim.recipe.schema import Recipe
from vitslim.results import Plan


def with_durations(plan: Plan, recipe: Recipe, trace_seconds: float) -> Plan:
    """Return a plan with the estimated duration of each stage on this machine; unchanged if the images are unknown.

    trace_seconds: those in which the model was traced. Raises InputError for an image folder that cannot be listed.
    """
    counts = planned_counts(recipe.data)
    macs = [row.cost.macs for row in plan.rows if row.cost is not None]
    if counts is None or len(macs) < len(plan.rows):
        return plan
    seconds = stage_seconds(recipe, macs, counts, probe(), trace_seconds)
    rows = tuple(row.model_copy(update={"seconds": one}) for row, one in zip(plan.rows, seconds, strict=True))
    return plan.model_copy(update={"rows": rows, "seconds": sum(seconds) + measuring_seconds(recipe)})
