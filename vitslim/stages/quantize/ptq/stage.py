"""The stage `quantize: {method: ptq}`."""

from __future__ import annotations

from vitslim.errors import Problem
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.quantize.base import QuantizeStage
from vitslim.stages.quantize.checks import graph_problems
from vitslim.stages.quantize.insert import compare, insert_quantizers
from vitslim.stages.quantize.notes import quantized_notes, skipped_notes
from vitslim.stages.quantize.placement import place


class PtqStage(QuantizeStage[Ptq]):
    """Post-training quantization from calibration images."""

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
