"""Teachers: an earlier graph of the run, or another timm model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vitslim.errors import StageError
from vitslim.graph.device import move
from vitslim.graph.model_graph import ModelGraph, ModelSource
from vitslim.graph.outputs import joined
from vitslim.graph.trace import trace_timm
from vitslim.progress import Progress
from vitslim.recipe.stages.training import Teacher, TrainedWithTeacher
from vitslim.training.device import find_device
from vitslim.training.distillation.features import block_outputs
from vitslim.training.distillation.objective import TeacherFunction
from vitslim.training.evaluate import predict
from vitslim.training.images import LabeledImages
from vitslim.training.loop import Batch
from vitslim.training.taps import LogitsAndFeatures, with_taps

EarlierGraph = Callable[[str], ModelGraph]
"""Returns the graph of `dense`, `previous`, or an earlier stage by its name."""


def load_teacher(teacher: Teacher, student: ModelSource, earlier_graph: EarlierGraph) -> ModelGraph:
    """Return the teacher's graph.

    Raises StageError if the outputs, the input size or the normalization of a timm teacher differ from the student's:
    their outputs for one batch would not be comparable.
    """
    if isinstance(teacher, str):
        return earlier_graph(teacher)
    graph = trace_timm(teacher.timm, {}, Path(teacher.checkpoint) if teacher.checkpoint else None)
    for theirs, ours in zip(_interface(graph.source), _interface(student), strict=True):
        if theirs != ours:
            raise StageError(
                f"the teacher {teacher.timm} has {theirs}, the student has {ours}",
                hint="set `teacher: dense`, or name a model with the student's classes, input size and normalization",
            )
    return graph


def teacher_function(
    teacher: ModelGraph, blocks: Sequence[str], config: TrainedWithTeacher, dataset: LabeledImages, progress: Progress
) -> TeacherFunction:
    """Return a function from a batch of `dataset` to the teacher's logits and the outputs of `blocks`.

    If every epoch has the same images and no features are needed, the outputs are computed once, in advance, except for
    maps.
    """
    device = find_device(config.train)
    is_small = not teacher.source.has_maps
    if is_small and not (blocks or config.train.has_mixing) and config.train.augment == "none":
        module = teacher.module.eval()
        stored = predict(module, dataset, config.train.batch, progress, "teacher")[0].to(device)
        return lambda batch: LogitsAndFeatures(stored[batch.positions], ())
    copied = teacher if device.type == "cpu" else teacher.copy()
    outputs = block_outputs(copied)
    tapped = with_taps(copied.module, [outputs[block] for block in blocks]).eval()
    move(tapped, device)

    def answer(batch: Batch) -> LogitsAndFeatures:
        with torch.no_grad():
            return LogitsAndFeatures(*tapped(batch.images))

    return answer


def averaged(functions: Sequence[TeacherFunction], temperature: float) -> TeacherFunction:
    """Return a teacher whose softmax at a temperature is the mean of those of several teachers.

    The soft loss of the result differs from the mean of their soft losses by a constant. Features are those of the
    first teacher.
    """
    if len(functions) == 1:
        return functions[0]

    def answer(batch: Batch) -> LogitsAndFeatures:
        answers = [function(batch) for function in functions]
        probabilities = [torch.log_softmax(joined(one.logits).float() / temperature, dim=1) for one in answers]
        mean = torch.logsumexp(torch.stack(probabilities), dim=0) - math.log(len(answers))
        return answers[0]._replace(logits=temperature * mean)

    return answer


def _interface(source: ModelSource) -> tuple[str, str, str]:
    """Describe the properties that two models must share for their logits on one batch to be comparable."""
    size = "x".join(map(str, source.image))
    normalization = source.preprocessing
    return (
        f"{source.classes} classes" if source.classes else f"features of {_sizes(source)}",
        f"inputs of {size}",
        f"images normalized by mean {normalization.mean} and std {normalization.std}",
    )


def _sizes(source: ModelSource) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in source.outputs.values())
