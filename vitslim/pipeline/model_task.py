"""The task of a recipe whose model is known, and the checks that depend on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitslim.errors import InputError, Problem
from vitslim.recipe.schema import Recipe
from vitslim.recipe.task_rules import task_problems, with_task
from vitslim.results import RESOLVED_KEY, LayerNote

if TYPE_CHECKING:
    from vitslim.data import DataModule
    from vitslim.graph.model_graph import ModelSource


def resolve_task(recipe: Recipe, source: ModelSource) -> tuple[Recipe, tuple[Problem, ...], tuple[LayerNote, ...]]:
    """Return the recipe with its task and the defaults of the task, problems of keys, and a note if it was inferred."""
    problems = tuple(task_problems(recipe, source.task, source.has_maps))
    notes: tuple[LayerNote, ...] = ()
    if recipe.model.task is None and source.task == "features":
        reason = "the outputs of the model are maps" if source.has_maps else "the model has no classifier"
        notes = (LayerNote(layer=RESOLVED_KEY, result=f"model.task = {source.task}", reason=reason),)
    return with_task(recipe, source.task), problems, notes


def check_labels(source: ModelSource, data: DataModule) -> None:
    """Raise InputError unless the images have the labels of the task: one, any number, or none are needed."""
    if source.task == "features":
        return
    several = any(isinstance(label, tuple) for part in (data.train, data.val) for label in part.labels)
    if several and source.task == "classify":
        message = "the images have any number of labels, but model.task is classify"
        raise InputError(message, "set model.task to multilabel")
    if not several and source.task == "multilabel":
        message = "model.task is multilabel, but every image has one label"
        raise InputError(
            message, "use a data set whose images have any number of labels, or set model.task to classify"
        )
