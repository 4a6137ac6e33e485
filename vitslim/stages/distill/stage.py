"""The distill stage: training with labels, a teacher, or both."""

from __future__ import annotations

import time

import torch

from vitslim.errors import Problem
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Distill, Teacher
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.distill.objective import distillation_objective
from vitslim.stages.distill.teacher import NO_TEACHER, find_teacher, teacher_logits
from vitslim.training import train


class DistillStage:
    """Trains every parameter of the graph; masked weights stay zero, the structure stays as it is."""

    def __init__(self, config: Distill) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:  # noqa: ARG002
        """A loss that is not identically zero."""
        loss = self.config.loss
        if loss.hard == 0 and loss.soft == 0:
            return [Problem("loss", "all loss weights are zero", "set loss.hard or loss.soft above zero")]
        if self.config.teacher == NO_TEACHER and loss.hard == 0:
            message = "without a teacher only the hard loss remains, and its weight is zero"
            return [Problem("loss.hard", message, "set loss.hard above zero, or name a teacher such as dense")]
        return []

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Training changes no size."""
        return sketch

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Train a copy of the graph. Metrics: `loss_first`, `loss_last`, `steps`, `images` and `seconds`.

        Raises StageError for a teacher that does not fit, and when the loss is no finite number.
        """
        started = time.perf_counter()
        config = self.config
        student = graph.copy()
        dataset = context.data.train.balanced(config.train.images, context.seed)
        # A soft loss of weight zero needs no teacher, whatever the recipe names.
        graph_of_teacher = find_teacher(config.teacher, graph.source, context) if config.loss.soft > 0 else None
        teacher = teacher_logits(graph_of_teacher, config, dataset, context) if graph_of_teacher else None
        metrics = train(
            student.module,
            dataset,
            distillation_objective(config, teacher),
            config.train,
            context.seed,
            student.masks,
            context.progress,
            label="distill: training",
        )
        metrics["seconds"] = time.perf_counter() - started
        epochs = "1 epoch" if config.train.epochs == 1 else f"{config.train.epochs} epochs"
        taught_by = _name(config.teacher) if teacher else NO_TEACHER
        what = f"trained {epochs} on {len(dataset)} images, teacher {taught_by}"
        note = LayerNote(layer="all parameters", what=what)
        return StageResult(student, changes=(note,), metrics=metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Finite weights of the same shapes, and masked weights still exactly zero."""
        problems = []
        old = before.parameters()
        for name, weight in after.parameters().items():
            if name not in old or old[name].shape != weight.shape:
                problems.append(Problem(name, "training changed the shape of a parameter"))
            if not torch.isfinite(weight).all():
                problems.append(Problem(name, "training left weights that are no finite numbers", "lower train.lr"))
            mask = after.masks.get(name)
            if mask is not None and bool(weight.detach()[~mask].any()):
                problems.append(Problem(name, "training moved weights that a mask holds at zero"))
        return problems


def _name(teacher: Teacher) -> str:
    return teacher if isinstance(teacher, str) else teacher.timm
