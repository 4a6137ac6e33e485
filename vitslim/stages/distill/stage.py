"""The distill stage: training with labels, a teacher, or both."""

from __future__ import annotations

from vitslim.errors import Problem
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Distill
from vitslim.stages.contract import StageContext, StageResult
from vitslim.training.distillation import train_with_teacher, weight_problems


class DistillStage:
    """Train every parameter of the graph; masked weights stay zero, and the structure does not change."""

    def __init__(self, config: Distill) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:  # noqa: ARG002
        """Return no problems: every model can be trained."""
        return []

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch unchanged: training changes no shape."""
        return sketch

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Train a copy of the graph.

        Raises StageError if the teacher does not fit the student, and if the loss is not finite.
        """
        student = graph.copy()
        note, metrics = train_with_teacher(
            student,
            self.config,
            context.data.train,
            context.graph_of,
            context.seed,
            context.progress,
            label="distill: training",
            keep=context.keep,
            accelerator=context.accelerator,
            earlier_outputs=context.outputs_of,
        )
        return StageResult(student, changes=(note,), metrics=metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Return parameters that were added, lost or reshaped, that are not finite, or that violate a mask."""
        changed = sorted(after.parameters().keys() ^ before.parameters().keys())
        return weight_problems(before, after) + [
            Problem(name, "training added or removed the parameter") for name in changed
        ]
