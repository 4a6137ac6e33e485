"""Who teaches: no one, an earlier stage of the run, or another timm model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.fx import GraphModule

from vitslim.data import Dataset
from vitslim.errors import StageError
from vitslim.graph.device import move
from vitslim.graph.model_graph import ModelGraph, ModelSource
from vitslim.graph.trace import trace_timm
from vitslim.recipe.stages.training import Teacher, TrainedWithTeacher
from vitslim.stages.contract import StageContext
from vitslim.stages.distill.features import block_outputs
from vitslim.stages.distill.objective import Teach
from vitslim.training import Batch, predict
from vitslim.training.device import find_device
from vitslim.training.taps import Tapped, with_taps

NO_TEACHER = "none"


def find_teacher(teacher: Teacher, student: ModelSource, context: StageContext) -> ModelGraph | None:
    """The teacher's graph, None for `none`.

    Raises StageError when its classes, its input size or its normalization differ from the student's: its logits
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


def ask(
    teacher: ModelGraph, blocks: Sequence[str], config: TrainedWithTeacher, dataset: Dataset, context: StageContext
) -> Teach:
    """A function that gives the teacher's logits for a batch of `dataset`, and the features of these blocks.

    Logits alone are computed once for each image, in advance, where every epoch shows the same images.
    """
    device = find_device(config.train)
    if not (blocks or config.train.mix) and config.train.augment == "none":
        module = teacher.module.eval()
        stored = predict(module, dataset, config.train.batch, context.progress, "teacher")[0].to(device)
        return lambda batch: Tapped(stored[batch.positions], ())
    tapped = tapped_teacher(teacher, blocks, device)

    def live(batch: Batch) -> Tapped:
        with torch.no_grad():
            return Tapped(*tapped(batch.images))

    return live


def tapped_teacher(teacher: ModelGraph, blocks: Sequence[str], device: torch.device) -> GraphModule:
    """The teacher as it answers, on a device, with what these blocks give out beside its logits."""
    here = teacher if device.type == "cpu" else teacher.copy()
    outputs = block_outputs(here)
    tapped = with_taps(here.module, [outputs[block] for block in blocks]).eval()
    move(tapped, device)
    return tapped


def _meaning(source: ModelSource) -> tuple[str, str, str]:
    """What two models must share for their logits on one batch to be comparable, in words."""
    size = "x".join(map(str, source.image))
    normalization = source.preprocessing
    return (
        f"{source.classes} classes",
        f"inputs of {size}",
        f"images normalized by mean {normalization.mean} and std {normalization.std}",
    )
