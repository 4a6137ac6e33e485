"""The task of a recipe whose model is known, and the checks that depend on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitslim.errors import Problem
from vitslim.recipe.schema import Recipe
from vitslim.recipe.task_rules import task_problems, with_task
from vitslim.results import RESOLVED_KEY, LayerNote

if TYPE_CHECKING:
    from vitslim.graph.model_graph import ModelSource


def resolve_task(recipe: Recipe, source: ModelSource) -> tuple[Recipe, tuple[Problem, ...], tuple[LayerNote, ...]]:
    """Return the recipe with its task and the defaults of the task, problems of keys, and a note if it was inferred."""
    problems = tuple(task_problems(recipe, source.task, source.has_maps))
    notes: tuple[LayerNote, ...] = ()
    if recipe.model.task is None and source.task == "features":
        reason = "the outputs of the model are maps" if source.has_maps else "the model has no classifier"
        notes = (LayerNote(layer=RESOLVED_KEY, result=f"model.task = {source.task}", reason=reason),)
    return with_task(recipe, source.task), problems, notes
