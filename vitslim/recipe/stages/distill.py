"""Configs of `distill` stages."""

from __future__ import annotations

from typing import ClassVar, Literal

from vitslim.recipe.stages.training import TrainedWithTeacher


class Distill(TrainedWithTeacher):
    """Train with a teacher; `teacher: none` is plain fine-tuning."""

    kind: ClassVar[str] = "distill"

    method: Literal["distill"] = "distill"
