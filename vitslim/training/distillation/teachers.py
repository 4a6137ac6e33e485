"""Teachers: an earlier graph of the run, or another timm model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vitslim.errors import StageError
from vitslim.graph.device import move
from vitslim.graph.model_graph import ModelGraph, ModelSource
from vitslim.graph.outputs import Outputs, joined
from vitslim.graph.trace import load_timm, trace_timm
from vitslim.progress import Progress
from vitslim.recipe.stages.training import Teacher, TeacherModel, TrainedWithTeacher
from vitslim.training.batch import Batch
from vitslim.training.device import find_device
from vitslim.training.distillation.features import block_outputs
from vitslim.training.distillation.input_conversion import input_conversion
from vitslim.training.distillation.objective import TeacherFunction
from vitslim.training.evaluate import predict
from vitslim.training.forms.taps import LogitsAndFeatures, with_taps
from vitslim.training.images import LabeledImages

EarlierGraph = Callable[[str], ModelGraph]
"""Returns the graph of `dense`, `previous`, or an earlier stage by its name."""
Forward = Callable[[torch.Tensor], Outputs]
EarlierOutputs = Callable[[str], Forward | None]
"""Returns the float model of an earlier stage by its name in a faster runtime on the CPU; None if there is none."""


def load_teacher(teacher: Teacher, student: ModelSource, earlier_graph: EarlierGraph) -> ModelGraph:
    """Return the teacher's graph.

    Raises StageError if the outputs or the image channels of a timm teacher differ from the student's.
    """
    if isinstance(teacher, str):
        return earlier_graph(teacher)
    graph = trace_timm(teacher.timm, *_arguments(teacher), preprocessing=teacher.preprocessing.values())
    for message in differences(graph.source, student):
        raise StageError(message, "set `teacher: dense`, or name a model with the student's classes and channels")
    return graph


def teacher_source(teacher: TeacherModel) -> ModelSource:
    """Return classes, image size and preprocessing of a timm teacher, which is built but not traced."""
    return load_timm(teacher.timm, *_arguments(teacher), preprocessing=teacher.preprocessing.values())[1]


def differences(teacher: ModelSource, student: ModelSource) -> Iterator[str]:
    """Yield a sentence on the outputs and on the image channels of a teacher that differ from the student's."""
    channels = [f"{source.image[0]} image channels" for source in (teacher, student)]
    for theirs, ours in ((_outputs(teacher), _outputs(student)), channels):
        if theirs != ours:
            yield f"the teacher {teacher.timm} has {theirs}, the model has {ours}"


def teacher_function(
    teacher: ModelGraph,
    student: ModelSource,
    blocks: Sequence[str],
    config: TrainedWithTeacher,
    dataset: LabeledImages,
    progress: Progress,
    forward: Forward | None = None,
) -> TeacherFunction:
    """Return a function from a batch of `dataset` to the teacher's logits and the outputs of `blocks`.

    The images are normalized for the `student`; they are converted for a teacher of another size or normalization. If
    every epoch has the same images and no features are needed, the outputs are computed once, in advance, except for
    maps. Augmentation draws other images in each epoch, whose outputs are computed when they are drawn. `forward`: the
    teacher in a faster runtime on the CPU, which is used there if no features are needed.
    """
    device = find_device(config.train)
    convert = input_conversion(student, teacher.source)
    run = forward if forward is not None and device.type == "cpu" else teacher.module.eval()
    is_small = not teacher.source.has_maps
    if is_small and not (blocks or config.train.has_mixing) and config.train.augment == "none":
        stored, _ = predict(
            lambda images: run(convert(images)), dataset, config.train.batch, progress, "teacher", by_ranks=True
        )
        logits = stored.to(device)
        return lambda batch: LogitsAndFeatures(logits[batch.positions], ())
    if run is forward and not blocks:
        return lambda batch: LogitsAndFeatures(run(convert(batch.images)), ())
    copied = teacher if device.type == "cpu" else teacher.copy()
    outputs = block_outputs(copied)
    tapped = with_taps(copied.module, [outputs[block] for block in blocks]).eval()
    move(tapped, device)

    def answer(batch: Batch) -> LogitsAndFeatures:
        with torch.no_grad():
            return LogitsAndFeatures(*tapped(convert(batch.images)))

    return answer


def _arguments(teacher: TeacherModel) -> tuple[dict[str, Any], Path | None]:
    return dict(teacher.kwargs), Path(teacher.checkpoint) if teacher.checkpoint else None


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


def _outputs(source: ModelSource) -> str:
    """Describe what the outputs of two models must have in common to be comparable."""
    sizes = " and ".join("x".join(map(str, shape)) for shape in source.outputs.values())
    return f"{source.classes} classes" if source.classes else f"features of {sizes}"
