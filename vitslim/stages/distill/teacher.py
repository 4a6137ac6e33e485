"""Who teaches: no one, an earlier stage of the run, or another timm model."""

from __future__ import annotations

from pathlib import Path

import torch

from vitslim.data import Dataset
from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph, ModelSource
from vitslim.graph.trace import trace_timm
from vitslim.recipe.stages import Distill, Teacher
from vitslim.stages.contract import StageContext
from vitslim.stages.distill.objective import TeacherLogits
from vitslim.training import Batch, predict

NO_TEACHER = "none"


def find_teacher(teacher: Teacher, student: ModelSource, context: StageContext) -> ModelGraph | None:
    """The teacher's graph, None for `none`.

    Raises StageError when its classes, its input size or its normalisation differ from the student's: its logits
    would mean something else.
    """
    if teacher == NO_TEACHER:
        return None
    if isinstance(teacher, str):
        return context.result(teacher).graph
    graph = trace_timm(teacher.timm, {}, Path(teacher.checkpoint) if teacher.checkpoint else None)
    for theirs, ours in zip(_meaning(graph.source), _meaning(student), strict=True):
        if theirs != ours:
            raise StageError(
                f"the teacher {teacher.timm} has {theirs}, the student {ours}",
                hint="distill from an earlier stage (teacher: dense), or from a model that takes the same images",
            )
    return graph


def teacher_logits(teacher: ModelGraph, config: Distill, dataset: Dataset, context: StageContext) -> TeacherLogits:
    """A function that gives the teacher's logits for a batch of `dataset`.

    Without augmentation every epoch shows the same images, so the teacher sees each of them once, in advance.
    """
    module = teacher.module.eval()
    if config.train.augment == "none":
        stored, _ = predict(module, dataset, config.train.batch, context.progress, "distill: teacher")
        return lambda batch: stored[batch.positions]

    def live(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = module(batch.images)
        return logits

    return live


def _meaning(source: ModelSource) -> tuple[str, str, str]:
    """What two models must share for their logits on one batch to be comparable, in words."""
    size = "x".join(map(str, source.image))
    normalisation = source.preprocessing
    return (
        f"{source.classes} classes",
        f"inputs of {size}",
        f"images normalised by mean {normalisation.mean} and std {normalisation.std}",
    )
