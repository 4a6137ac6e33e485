"""Train a student with labels, a teacher, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch.fx import GraphModule

from vitslim.errors import Problem, StageError
from vitslim.graph.approximate import with_approximation
from vitslim.graph.axes.tensor_shapes import tensor_shapes
from vitslim.graph.edits.insert_predictors import find_predictors
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.training_form import TrainingForm, training_form, with_sampled_decisions
from vitslim.progress import Progress
from vitslim.recipe.accelerators import Accelerator
from vitslim.recipe.stages.training import NO_TEACHER, TrainedWithTeacher
from vitslim.results import LayerNote
from vitslim.training.device import device_name, find_device, find_precision
from vitslim.training.distillation.features import block_outputs, select_blocks
from vitslim.training.distillation.input_conversion import describe_conversion
from vitslim.training.distillation.objective import DistillationLoss, with_penalty
from vitslim.training.distillation.teachers import (
    EarlierGraph,
    EarlierOutputs,
    averaged,
    load_teacher,
    teacher_function,
)
from vitslim.training.forms.drop_path import with_drop_path
from vitslim.training.forms.taps import with_taps
from vitslim.training.hook import TrainingHook
from vitslim.training.images import LabeledImages
from vitslim.training.loop import train
from vitslim.training.tasks import task_for


def train_with_teacher(  # noqa: PLR0913 - each argument is one independent input of a training run
    student: ModelGraph,
    config: TrainedWithTeacher,
    dataset: LabeledImages,
    earlier_graph: EarlierGraph,
    seed: int,
    progress: Progress,
    *,
    label: str = "training",
    weights: torch.Tensor | None = None,
    keep: Path | None = None,
    accelerator: Accelerator | None = None,
    epochs: range | None = None,
    rates: Mapping[str, float] = MappingProxyType({}),
    penalty: Callable[[], torch.Tensor] | None = None,
    hook: TrainingHook | None = None,
    earlier_outputs: EarlierOutputs = lambda _: None,
) -> tuple[LayerNote, dict[str, float]]:
    """Train every parameter of `student` in place; masked weights stay zero and no tensor changes its shape.

    A student with token predictors is trained by its training form, which shares its parameters, unless the stage
    trains the model as it is deployed. `dataset` is the whole training set, of which `config.train.images` are used.
    With an `accelerator` the student is trained as that accelerator computes it.
    `earlier_graph` resolves the names of teachers. `weights`, float (blocks,), weights the feature losses of the
    compared blocks. `epochs` and `rates`: as in `train`. `penalty`: a scalar that is added to the loss of each step,
    and recorded as `penalty`. `hook`: as in `train`. In the folder `keep` the state is written as training goes on, so
    that an interrupted training continues from it. `earlier_outputs`: teachers by name in a faster runtime.
    Returns a note and the metrics `loss_first`, `loss_last`, `steps`, `images`, `seconds`, `stall_share`, and
    `feature_loss.BLOCK` and `kept_fraction.BLOCK` of the last epoch. Raises StageError if the teacher does not fit the
    student, if the loss is not finite, and if a term of the loss needs token predictors and the student has none.
    """
    device = find_device(config.train)
    images = dataset.balanced(config.train.images, seed)
    named = config.teachers if config.needs_teacher else ()
    teachers = [load_teacher(teacher, student.source, earlier_graph) for teacher in named]
    blocks: tuple[str, ...] = ()
    if teachers and config.loss.feature > 0:
        blocks = select_blocks(config.features, student)
        _require_equal_features(student, teachers[0], blocks)
    form = _training_form(student, config)
    tapped = blocks
    if teachers and form is not None and config.loss.token > 0:
        tapped = (_require_equal_tokens(form, teachers[0]),)
    functions = [
        teacher_function(
            teacher, student.source, tapped if position == 0 else (), config, images, progress,
            earlier_outputs(name) if isinstance(name, str) else None,
        )
        for position, (name, teacher) in enumerate(zip(named, teachers, strict=True))
    ]  # fmt: skip
    answers = averaged(functions, config.temperature) if functions else None
    label_teacher = None
    if config.label_teacher is not None:
        graph = load_teacher(config.label_teacher, student.source, earlier_graph)
        forward = earlier_outputs(config.label_teacher) if isinstance(config.label_teacher, str) else None
        label_teacher = teacher_function(graph, student.source, (), config, images, progress, forward)
    kept = dict(zip(form.blocks, form.kept_fractions, strict=True)) if form is not None else {}
    objective = DistillationLoss(
        config, answers, blocks, None if weights is None else weights.to(device), kept, label_teacher, hook,
        task_for(student.source),
    )  # fmt: skip
    metrics = train(
        _trained_module(student, form, blocks, config, accelerator),
        images,
        objective if penalty is None else with_penalty(objective, penalty),
        config.train,
        seed,
        student.masks,
        progress,
        label=label,
        hook=hook,
        keep=keep,
        classes=student.source.classes,
        epochs=epochs,
        rates=rates,
        blocks=tuple(block_outputs(student)) if config.train.layer_decay < 1 else (),
    )
    student.module.eval()
    converted = dict.fromkeys(describe_conversion(student.source, one.source) for one in teachers)
    summary, reason = _summary(config, len(images), device), "; ".join(filter(None, converted))
    return LayerNote(layer="all parameters", result=summary, reason=reason), metrics


def weight_problems(before: ModelGraph, after: ModelGraph) -> list[Problem]:
    """Return parameters that training reshaped, left not finite, or moved although a mask holds them at zero."""
    problems = []
    old = before.parameters()
    for name, weight in after.parameters().items():
        if name in old and old[name].shape != weight.shape:
            problems.append(Problem(name, "training changed the shape of the parameter"))
        if not torch.isfinite(weight).all():
            problems.append(Problem(name, "training left values that are not finite", "lower train.lr"))
        mask = after.masks.get(name)
        if mask is not None and bool(weight.detach()[~mask].any()):
            problems.append(Problem(name, "training moved weights that the sparsity mask holds at zero"))
    return problems


def _training_form(student: ModelGraph, config: TrainedWithTeacher) -> TrainingForm | None:
    """Return the training form of a student with token predictors; None for another student, or one trained as it is.

    Raises StageError if the loss needs predictors and there are none, or compares block outputs and there are some.
    """
    has_predictors = config.uses_training_form and bool(find_predictors(student.module))
    terms = [f"loss.{name}" for name in ("ratio", "token") if getattr(config.loss, name) > 0]
    if not has_predictors and terms:
        raise StageError(f"`{terms[0]}` needs token predictors, and the model has none", f"set {terms[0]} to 0")
    if has_predictors and config.loss.feature > 0:
        message = "`loss.feature` compares block outputs, from which token predictors drop tokens"
        raise StageError(message, "set loss.feature to 0; loss.token compares the kept tokens")
    return training_form(student) if has_predictors else None


def _require_equal_tokens(form: TrainingForm, teacher: ModelGraph) -> str:
    """Return the block whose tokens the token loss compares. Raises StageError if the teacher's have another shape."""
    outputs = block_outputs(teacher)
    if form.last_block not in outputs:
        raise StageError(f"the teacher has no block '{form.last_block}'", "choose a teacher of the same architecture")
    theirs = tensor_shapes(teacher.module, teacher.source.image)[outputs[form.last_block]][1:]
    if theirs != form.token_shape:
        raise StageError(
            f"the tokens of {form.last_block} have shape {form.token_shape} in the student and {theirs} in the teacher",
            "set loss.token to 0, or choose a teacher with as many tokens and channels",
        )
    return form.last_block


def _trained_module(
    student: ModelGraph,
    form: TrainingForm | None,
    blocks: tuple[str, ...],
    config: TrainedWithTeacher,
    accelerator: Accelerator | None,
) -> GraphModule:
    """Return the module that is trained, which shares all parameters with the student.

    Raises StageError for a student that the accelerator cannot compute.
    """
    if form is None:
        module = with_drop_path(_with_features(student, blocks), student, config.train.drop_path)
        return module if accelerator is None else with_approximation(module, student, accelerator)
    return with_sampled_decisions(with_drop_path(form.graph.module, form.graph, config.train.drop_path))


def _with_features(student: ModelGraph, blocks: tuple[str, ...]) -> GraphModule:
    """Return the student's module, which also returns the outputs of `blocks` if there are any.

    The maps of a backbone are returned as one part of a pair also without `blocks`.
    """
    if not blocks and len(student.source.outputs) <= 1:
        return student.module
    outputs = block_outputs(student)
    return with_taps(student.module, [outputs[block] for block in blocks])


def _require_equal_features(student: ModelGraph, teacher: ModelGraph, blocks: tuple[str, ...]) -> None:
    """Raise StageError if the teacher lacks one of the blocks, or if the block's output has another shape there."""
    student_shapes, teacher_shapes = (tensor_shapes(one.module, one.source.image) for one in (student, teacher))
    student_outputs, teacher_outputs = block_outputs(student), block_outputs(teacher)
    for block in blocks:
        if block not in teacher_outputs:
            raise StageError(f"the teacher has no block '{block}'", "choose a teacher of the student's architecture")
        ours = student_shapes[student_outputs[block]][1:]
        theirs = teacher_shapes[teacher_outputs[block]][1:]
        if ours != theirs:
            raise StageError(
                f"the features of {block} have shape {ours} in the student and {theirs} in the teacher",
                "set loss.feature to 0, or name blocks whose width and tokens were not pruned",
            )


def _summary(config: TrainedWithTeacher, images: int, device: torch.device) -> str:
    """Describe the training for the report."""
    epochs = "1 epoch" if config.train.epochs == 1 else f"{config.train.epochs} epochs"
    where = f"{device_name(device)} in {find_precision(config.train, device)}"
    teachers = config.teachers if config.needs_teacher else ()
    names = " and ".join(one if isinstance(one, str) else one.timm for one in teachers) or NO_TEACHER
    return f"trained {epochs} on {images} images on {where}, teacher {names}"
