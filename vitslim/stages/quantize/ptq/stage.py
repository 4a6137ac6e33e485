"""The stage `quantize: {method: ptq}`."""

from __future__ import annotations

from vitslim.errors import Problem
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.quantize.checks import graph_problems, model_problems, quantized_sketch
from vitslim.stages.quantize.insert import compare, insert_quantizers
from vitslim.stages.quantize.notes import quantized_notes, skipped_notes
from vitslim.stages.quantize.placement import place
from vitslim.stages.quantize.scheme import QuantScheme


class PtqStage:
    """Post-training quantization from calibration images."""

    def __init__(self, config: Ptq) -> None:
        self.config = config
        self.scheme = QuantScheme.of(config)

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Return the keys that do not fit the model."""
        return model_problems(self.scheme, sketch)

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with fewer bits; approximate if measurements choose which activations stay in float."""
        after = quantized_sketch(self.scheme, sketch)
        return after.as_approximate() if self.config.placement == "auto" else after

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Quantize the float graph on the calibration images."""
        quantized = insert_quantizers(graph, self.scheme, context)
        placed, notes = place(quantized, graph, self.config, context)
        sites = {site.weight for site in placed.scheme.sites}
        return StageResult(
            placed.graph,
            changes=(*placed.rotated, *notes, *quantized_notes(graph, placed.graph, placed.scheme)),
            skipped=(*placed.skipped, *skipped_notes(graph, sites)),
            metrics=placed.metrics | compare(graph, placed.graph, context),
        )

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Return the layers that are not quantized and the scales that are not valid."""
        return graph_problems(self.scheme, before, after)
