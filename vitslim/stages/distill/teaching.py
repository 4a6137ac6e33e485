"""Training with a teacher, as the distill stage and quantization-aware training share it."""

from __future__ import annotations

import torch

from vitslim.errors import Problem, StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.shapes import tensor_shapes
from vitslim.recipe.stages.training import TrainedWithTeacher
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext
from vitslim.stages.distill.features import block_outputs, critical_blocks
from vitslim.stages.distill.objective import Distillation
from vitslim.stages.distill.teacher import NO_TEACHER, ask, find_teacher
from vitslim.training import train
from vitslim.training.device import device_name, find_device, find_precision
from vitslim.training.taps import with_taps


def teach(
    student: ModelGraph,
    config: TrainedWithTeacher,
    context: StageContext,
    label: str,
    weights: torch.Tensor | None = None,
) -> tuple[LayerNote, dict[str, float]]:
    """Train every parameter of `student` in place; masked weights stay zero, the structure stays as it is.

    `weights` float (critical blocks,) of the feature losses. Gives a note and the metrics `loss_first`, `loss_last`,
    `steps`, `images`, `seconds`, and `feature_loss.BLOCK` of the last epoch. Raises StageError for a teacher that does
    not fit, and when the loss is no finite number.
    """
    device = find_device(config.train)
    dataset = context.data.train.balanced(config.train.images, context.seed)
    # A loss of weight zero needs no teacher, whatever the recipe names.
    teacher = find_teacher(config.teacher, student.source, context) if config.needs_teacher else None
    blocks = critical_blocks(config.features, student) if teacher is not None and config.loss.feature > 0 else ()
    if teacher is not None and blocks:
        _require_equal_features(student, teacher, blocks)
    says = ask(teacher, blocks, config, dataset, context) if teacher is not None else None
    outputs = block_outputs(student) if blocks else {}
    module = with_taps(student.module, [outputs[block] for block in blocks]) if blocks else student.module
    metrics = train(
        module,
        dataset,
        Distillation(config, says, blocks, None if weights is None else weights.to(device)),
        config.train,
        context.seed,
        student.masks,
        context.progress,
        label=label,
        keep=context.keep,
    )
    student.module.eval()
    return LayerNote(layer="all parameters", what=_what(config, len(dataset), device)), metrics


def spoilt(before: ModelGraph, after: ModelGraph) -> list[Problem]:
    """Weights that training left no finite numbers, or moved although a mask holds them at zero."""
    problems = []
    old = before.parameters()
    for name, weight in after.parameters().items():
        if name in old and old[name].shape != weight.shape:
            problems.append(Problem(name, "training changed the shape of a parameter"))
        if not torch.isfinite(weight).all():
            problems.append(Problem(name, "training left weights that are no finite numbers", "lower train.lr"))
        mask = after.masks.get(name)
        if mask is not None and bool(weight.detach()[~mask].any()):
            problems.append(Problem(name, "training moved weights that a mask holds at zero"))
    return problems


def _require_equal_features(student: ModelGraph, teacher: ModelGraph, blocks: tuple[str, ...]) -> None:
    """Raise StageError where a block is missing in the teacher or gives features of another shape there."""
    ours, theirs = (tensor_shapes(one.module, one.source.image) for one in (student, teacher))
    mine, others = block_outputs(student), block_outputs(teacher)
    for block in blocks:
        if block not in others:
            raise StageError(f"the teacher has no block '{block}'", "choose a teacher of the student's architecture")
        here, there = ours[mine[block]][1:], theirs[others[block]][1:]
        if here != there:
            raise StageError(
                f"{block} gives features of {here}, that of the teacher of {there}",
                "set loss.feature to 0, or name blocks whose width and tokens were not cut",
            )


def _what(config: TrainedWithTeacher, images: int, device: torch.device) -> str:
    """What was done, for the report."""
    epochs = "1 epoch" if config.train.epochs == 1 else f"{config.train.epochs} epochs"
    where = f"{device_name(device)} in {find_precision(config.train, device)}"
    named = config.teacher if isinstance(config.teacher, str) else config.teacher.timm
    return f"trained {epochs} on {images} images on {where}, teacher {named if config.needs_teacher else NO_TEACHER}"
