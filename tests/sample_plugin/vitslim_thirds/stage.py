"""The stage of the method."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vitslim.errors import Problem
from vitslim.graph.edits.mask import mask_weights
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.sparsity import unstructured_pattern
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.layer_choice import chosen_layers
from vitslim.stages.prune.masks import mask_violations
from vitslim_thirds.config import EveryThird

PATTERN = unstructured_pattern(1 / 3)


@dataclass
class EveryThirdStage:
    """Runs `prune: {method: every-third}`."""

    config: EveryThird

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        return [Problem("", "the model already has a mask")] if sketch.sparsity else []

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        return sketch.with_sparsity(self._names(sketch), PATTERN)

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        weights = graph.parameters()
        masks = {name: torch.ones_like(weights[name], dtype=torch.bool) for name in self._names(sketch(graph))}
        for mask in masks.values():
            mask[..., self.config.first :: 3] = False
        return StageResult(mask_weights(graph, PATTERN, masks))

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        return mask_violations(after, self._names(sketch(before)))

    def _names(self, sketch: ModelSketch) -> list[str]:
        return [layer.weight for layer in chosen_layers("gemm", sketch)]
