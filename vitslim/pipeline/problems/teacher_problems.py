"""Problems between a model and the timm models that teach it, which `plan` finds before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitslim.errors import Problem
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stages.training import TeacherModel, TrainedWithTeacher

if TYPE_CHECKING:
    from vitslim.graph.model_graph import ModelSource


def teacher_problems(recipe: Recipe, student: ModelSource) -> tuple[Problem, ...]:
    """Return the teachers whose classes or image channels differ from the student's; each teacher is built once.

    Raises UsageError for a teacher that timm cannot build, InputError for a checkpoint that cannot be read.
    """
    named = list(_named_teachers(recipe))
    if not named:
        return ()
    from vitslim.training.distillation.teachers import differences, teacher_source

    sources = [(where, teacher_source(teacher)) for where, teacher in named]
    return tuple(
        Problem(where, message, "name a teacher with the classes and channels of the model, or set model.kwargs")
        for where, source in sources
        for message in differences(source, student)
    )


def _named_teachers(recipe: Recipe) -> Iterator[tuple[str, TeacherModel]]:
    """Yield the timm models that a stage learns from, with the paths of their keys."""
    for position, config in enumerate(recipe.stages):
        if not isinstance(config, TrainedWithTeacher):
            continue
        where = f"stages.{position}.{config.kind}"
        for number, teacher in enumerate(config.teachers if config.needs_teacher else ()):
            if isinstance(teacher, TeacherModel):
                yield f"{where}.teacher.{number}" if isinstance(config.teacher, tuple) else f"{where}.teacher", teacher
        if config.label_teacher is not None:
            yield f"{where}.label_teacher", config.label_teacher
