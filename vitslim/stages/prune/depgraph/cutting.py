"""One pruning step: score the current graph, choose the length of each axis, cut."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitslim.errors import Problem, StageError
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import DepGraph
from vitslim.stages.contract import StageContext
from vitslim.stages.prune.depgraph.budget import Schedule
from vitslim.stages.prune.depgraph.gradients import calibration_batches
from vitslim.stages.prune.depgraph.importance import IMPORTANCES, ScoreInputs
from vitslim.stages.prune.depgraph.lengths import kept_indices
from vitslim.stages.prune.depgraph.ranking import list_of, ranked_schedule
from vitslim.stages.prune.depgraph.schedule import local_schedule, plan_lengths
from vitslim.stages.prune.depgraph.targets import Target

if TYPE_CHECKING:
    from vitslim.results import LatencyTable


@dataclass(frozen=True)
class Cutter:
    """Cuts a graph toward the lengths of a recipe. Ratios and budget refer to the graph before the first step."""

    config: DepGraph
    original: ModelSketch
    targets: tuple[Target, ...]
    lists: Mapping[str, Hashable]
    """Axis name to its rank list; empty when each axis is cut on its own."""
    inputs: ScoreInputs
    """Inputs of the importance; each step sets its own graph and axes."""
    latency: LatencyTable | None

    def cut(self, graph: ModelGraph, progress: float) -> ModelGraph:
        """Return the graph at this fraction of the way, from 0 to 1.

        Raises StageError for a budget that cannot be reached, and for gradients that are not finite.
        """
        present = {axis.name: axis for axis in graph.axes.axes}
        axes = tuple(present[target.axis] for target in self.targets if target.axis in present)
        scores = IMPORTANCES[self.config.importance].scores(replace(self.inputs, graph=graph, axes=axes))
        plan = plan_lengths(self.original, self.config, self.targets, self.latency, self._schedule(scores))
        if isinstance(plan, Problem):
            raise StageError(plan.message, plan.hint)
        lengths = plan(progress)
        kept = {
            axis: kept_indices(values, lengths[axis]) for axis, values in scores.items() if lengths[axis] < len(values)
        }
        return slice_axes(graph, kept) if kept else graph

    def _schedule(self, scores: Mapping[str, Tensor]) -> Schedule:
        return ranked_schedule(self.targets, scores, self.lists) if self.lists else local_schedule(self.targets)


def score_inputs(graph: ModelGraph, config: DepGraph, context: StageContext) -> ScoreInputs:
    """Return the inputs of the importance that a recipe names, before the first step.

    Raises StageError for an importance that uses images when there are none.
    """
    count = config.batches if IMPORTANCES[config.importance].uses_images else 0
    images = calibration_batches(context.data.calibration, count, config.batch, context.seed)
    return ScoreInputs(graph, (), images, context.progress, torch.Generator().manual_seed(context.seed))


def rank_lists(graph: ModelGraph, config: DepGraph, targets: tuple[Target, ...]) -> dict[str, Hashable]:
    """Return the rank list of each axis by its name; empty when each axis is cut on its own."""
    if config.scope == "local":
        return {}
    return {target.axis: list_of(graph.axes[target.axis], config.scope) for target in targets}
