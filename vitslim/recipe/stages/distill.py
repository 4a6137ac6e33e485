"""Configs of `distill` stages."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vitslim.recipe.accelerators import AcceleratorName
from vitslim.recipe.stages.training import TrainedWithTeacher


class Distill(TrainedWithTeacher):
    """Train with a teacher; `teacher: none` is plain fine-tuning."""

    kind: ClassVar[str] = "distill"

    method: Literal["distill"] = "distill"
    approximate: AcceleratorName | None = Field(
        None,
        description="train under the approximations of this simulated accelerator, with the settings that it has in "
        "report.backends; default: train the model as it is",
    )

    @property
    def approximation(self) -> AcceleratorName | None:
        """The accelerator under whose approximations the stage trains; None without any."""
        return self.approximate

    @property
    def uses_training_form(self) -> bool:
        """Whether the stage trains token predictors by the training form of the model."""
        return True

    @property
    def trains_predictors(self) -> bool:
        """Whether the stage trains token predictors towards the fractions of tokens that they keep."""
        return self.loss.ratio > 0
