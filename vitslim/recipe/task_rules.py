"""The task of a model as the text of a recipe decides it, and the keys that a task excludes or changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vitslim.errors import Problem
from vitslim.recipe.schema import Model, Recipe
from vitslim.recipe.stage_config import Phase, StageConfig
from vitslim.recipe.stages.training import NO_TEACHER, TrainedWithTeacher
from vitslim.tasks import GATE_METRICS, Task, gate_tasks


def states_maps(model: Model) -> bool:
    """Return whether the text of a recipe states that the outputs of the model are maps."""
    return bool(model.kwargs.get("features_only"))


def stated_task(model: Model) -> Task | None:
    """Return the task that the text of a recipe states; None if only the model decides."""
    return model.task or ("features" if _is_headless(model) else None)


def with_task(recipe: Recipe, task: Task) -> Recipe:
    """Return the recipe of a model of a known task, with the default values of the task.

    Training of a feature extractor has no hard loss, which needs labels.
    """
    stages = tuple(_with_defaults(stage, task) for stage in recipe.stages)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"task": task}), "stages": stages})


def model_task_problems(model: Model) -> Iterator[Problem]:
    """Yield contradictions between `model.task` and the arguments of the model."""
    classes = model.kwargs.get("num_classes")
    if model.task == "features" and classes and not model.kwargs.get("features_only"):
        message = f"a feature extractor has no classifier, got `kwargs: {{num_classes: {classes}}}`"
        yield Problem("model.task", message, "set `num_classes: 0`, or remove `task`")
    elif model.task not in (None, "features") and _is_headless(model):
        key = "features_only" if model.kwargs.get("features_only") else "num_classes"
        message = f"`task: {model.task}` needs a classifier, which `kwargs.{key}` removes"
        yield Problem("model.task", message, f"remove `kwargs.{key}`, or set `task: features`")


def task_problems(recipe: Recipe, task: Task, has_maps: bool = False) -> Iterator[Problem]:
    """Yield the gates and the keys of training that do not apply to a task. has_maps: whether outputs are maps."""
    for gate in GATE_METRICS:
        if getattr(recipe.gates, gate) is None:
            continue
        if task not in gate_tasks(gate):
            allowed = ", ".join(one for one in GATE_METRICS if task in gate_tasks(one))
            message = f"the gate does not apply to `task: {task}`, whose gates are {allowed}"
            yield Problem(f"gates.{gate}", message, f"remove `{gate}`")
        elif gate == "neighbor_agreement_min" and has_maps:
            yield Problem(f"gates.{gate}", "maps have no nearest neighbors", "use `cosine_min`")
    for position, config in enumerate(recipe.stages):
        for problem in _stage_problems(config, task, has_maps):
            where = f"stages.{position}.{config.kind}.{problem.where}".rstrip(".")
            yield Problem(where, problem.message, problem.hint)


def _stage_problems(config: StageConfig, task: Task, has_maps: bool) -> Iterator[Problem]:
    if has_maps and config.phase is Phase.TOKENS:
        yield Problem("", "the outputs of the model are maps of all its tokens", "remove the stage")
    if task == "features" and config.needs_labels:
        message = f"`method: {config.method}` needs a model with classes: {config.needs_labels}"
        yield Problem("method", message, "use `method: depgraph`")
    elif isinstance(config, TrainedWithTeacher) and task != "classify":
        yield from _training_problems(config, task)


def _training_problems(config: TrainedWithTeacher, task: Task) -> Iterator[Problem]:
    if isinstance(config.teacher, tuple):
        message = f"a list of teachers averages probabilities of classes, which `task: {task}` has not"
        yield Problem("teacher", message, "name one teacher")
    if config.train.has_mixing:
        key = "mixup" if config.train.mixup > 0 else "cutmix"
        yield Problem(f"train.{key}", f"`{key}` needs one label for each image", f"set `{key}: 0`")
    if task == "features":
        yield from _feature_problems(config)


def _feature_problems(config: TrainedWithTeacher) -> Iterator[Problem]:
    """Yield the keys of training that need labels or classes, which a feature extractor has not."""
    if _sets(config, "loss", "hard") and config.loss.hard > 0:
        message = f"a feature extractor learns no labels, got `hard: {config.loss.hard:g}`"
        yield Problem("loss.hard", message, "remove `hard`; `soft` compares the outputs with the teacher's")
    loss = config.loss
    if loss.soft == loss.feature == loss.token == 0:
        yield Problem("loss", "every term of the loss has weight zero", "set `soft` or `feature` above zero")
    if config.teacher == NO_TEACHER:
        yield Problem("teacher", "a feature extractor learns from a teacher only, got none", "set `teacher: dense`")
    if config.labels == "teacher":
        yield Problem("labels", "`labels: teacher` is a part of the hard loss, which needs classes", "remove `labels`")
    if config.label_teacher is not None:
        message = "`label_teacher` is a part of the hard loss, which needs classes"
        yield Problem("label_teacher", message, "remove `label_teacher`")
    if config.train.label_smoothing > 0:
        message = "`label_smoothing` is a part of the hard loss, which needs labels"
        yield Problem("train.label_smoothing", message, "remove `label_smoothing`")
    if _sets(config, "features", "only_agreeing") and config.features.only_agreeing:
        message = "a feature extractor predicts no classes that could agree"
        yield Problem("features.only_agreeing", message, "remove `only_agreeing`: all images count")


def _with_defaults(stage: StageConfig, task: Task) -> StageConfig:
    if task != "features" or not isinstance(stage, TrainedWithTeacher):
        return stage
    changes: dict[str, Any] = {}
    if not _sets(stage, "loss", "hard"):
        changes["loss"] = stage.loss.model_copy(update={"hard": 0.0})
    if not _sets(stage, "features", "only_agreeing"):
        changes["features"] = stage.features.model_copy(update={"only_agreeing": False})
    return stage.model_copy(update=changes)


def _sets(config: TrainedWithTeacher, key: str, below: str) -> bool:
    """Return whether the recipe sets `key.below`, which otherwise has its default value."""
    return key in config.model_fields_set and below in getattr(config, key).model_fields_set


def _is_headless(model: Model) -> bool:
    return states_maps(model) or model.kwargs.get("num_classes") == 0
