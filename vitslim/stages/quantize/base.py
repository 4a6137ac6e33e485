"""The part that quantize stages share: checks on the model and the estimate for `plan`."""

from __future__ import annotations

from typing import Generic, TypeVar

from vitslim.errors import Problem
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Quantize
from vitslim.stages.quantize.checks import model_problems, quantized_sketch
from vitslim.stages.quantize.scheme import QuantScheme

C = TypeVar("C", bound=Quantize)


class QuantizeStage(Generic[C]):
    """Base of quantize stages; a method adds `apply` and `ensures`."""

    def __init__(self, config: C) -> None:
        self.config = config
        self.scheme = QuantScheme.of(config)

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Return the keys that do not fit the model."""
        return model_problems(self.scheme, sketch)

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with fewer bits; approximate if measurements choose which activations stay in float."""
        after = quantized_sketch(self.scheme, sketch)
        return after.as_approximate() if self.config.placement == "auto" else after
