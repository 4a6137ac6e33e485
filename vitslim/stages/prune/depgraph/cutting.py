"""One step of structural pruning: score the graph as it is now, decide the lengths, cut."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vitslim.errors import Problem, StageError
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import DepGraph
from vitslim.stages.prune.depgraph.budget import Schedule
from vitslim.stages.prune.depgraph.lengths import kept_indices
from vitslim.stages.prune.depgraph.ranking import list_of, ranked_schedule
from vitslim.stages.prune.depgraph.schedule import local_schedule, plan_lengths
from vitslim.stages.prune.depgraph.scores import Scorer
from vitslim.stages.prune.depgraph.targets import Target

if TYPE_CHECKING:
    from vitslim.results import LatencyTable


@dataclass(frozen=True)
class Cutter:
    """Cuts a graph towards the lengths that a recipe asks for. Ratios and budget are of the graph at the start."""

    config: DepGraph
    original: ModelSketch
    targets: tuple[Target, ...]
    lists: Mapping[str, Hashable]
    """Axis name to its rank list; empty where each axis is cut by itself."""
    scorer: Scorer
    latency: LatencyTable | None

    def cut(self, graph: ModelGraph, progress: float) -> ModelGraph:
        """The graph at this much progress, from 0 to 1. Raises StageError when the budget cannot be reached."""
        present = {axis.name: axis for axis in graph.axes.axes}
        scores = self.scorer.scores(graph, [present[t.axis] for t in self.targets if t.axis in present])
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


def rank_lists(graph: ModelGraph, config: DepGraph, targets: tuple[Target, ...]) -> dict[str, Hashable]:
    """Axis name to its rank list; empty where each axis is cut by itself."""
    if config.scope == "local":
        return {}
    return {target.axis: list_of(graph.axes[target.axis], config.scope) for target in targets}
