"""The distill stage: training with labels, a teacher, or both."""

from __future__ import annotations

from vitslim.errors import Problem
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Distill
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.distill.teaching import spoilt, teach


class DistillStage:
    """Trains every parameter of the graph; masked weights stay zero, the structure stays as it is."""

    def __init__(self, config: Distill) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:  # noqa: ARG002
        """A loss that is not identically zero."""
        return []

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Training changes no size."""
        return sketch

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Train a copy of the graph. Raises StageError for a teacher that does not fit, and for a loss that is no
        finite number."""
        student = graph.copy()
        note, metrics = teach(student, self.config, context, "distill: training")
        return StageResult(student, changes=(note,), metrics=metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """The same parameters, finite, and masked weights still exactly zero."""
        missing = sorted(after.parameters().keys() ^ before.parameters().keys())
        return spoilt(before, after) + [Problem(name, "training added or lost a parameter") for name in missing]
