"""The stage `quantize: {method: qat}`: quantizers from calibration, then trained together with the weights."""

from __future__ import annotations

import torch

from vitslim.errors import Problem, StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages import Qat
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.quantize.base import QuantizeStage
from vitslim.stages.quantize.checks import graph_problems
from vitslim.stages.quantize.insert import compare, insert_quantizers
from vitslim.stages.quantize.notes import quantized_notes, skipped_notes
from vitslim.stages.quantize.placement import place
from vitslim.training.distillation import (
    FEATURE_LOSS,
    block_weights,
    select_blocks,
    train_with_teacher,
    weight_problems,
)


class QatStage(QuantizeStage[Qat]):
    """Quantization-aware training with a teacher; scales are learned (LSQ, Esser et al., ICLR 2020; GPUSQ)."""

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Insert quantizers, then train. Masked weights stay zero, and so do their integers."""
        quantized = insert_quantizers(graph, self.scheme, context)
        before_training = compare(graph, quantized.graph, context)
        weights, weight_notes = self._feature_weights(quantized.graph, context)
        trained, metrics = train_with_teacher(
            quantized.graph,
            self.config,
            context.data.train,
            context.graph_of,
            context.seed,
            context.progress,
            label="quantize: training",
            weights=weights,
            keep=context.keep,
            earlier_outputs=context.outputs_of,
        )
        placed, notes = place(quantized, graph, self.config, context)
        sites = {site.weight for site in placed.scheme.sites}
        return StageResult(
            placed.graph,
            changes=(trained, *weight_notes, *notes, *quantized_notes(graph, placed.graph, placed.scheme)),
            skipped=(*placed.skipped, *skipped_notes(graph, sites)),
            metrics=metrics | {"before_training_calibration_sqnr_db": before_training["calibration_sqnr_db"]},
        )

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Return layers that are not quantized, scales that are not valid, and masked weights that are not zero."""
        return graph_problems(self.scheme, before, after) + weight_problems(before, after)

    def _feature_weights(
        self, graph: ModelGraph, context: StageContext
    ) -> tuple[torch.Tensor | None, tuple[LayerNote, ...]]:
        """Return the weights of the feature losses, from the losses that an earlier stage ended with, and notes."""
        config = self.config.feature_weight
        if config is None or self.config.loss.feature == 0:
            return None, ()
        earlier = context.result(config.stage).metrics
        blocks = select_blocks(self.config.features, graph)
        missing = [block for block in blocks if FEATURE_LOSS + block not in earlier]
        if missing:
            message = f"the stage '{config.stage}' has no feature loss of {missing[0]}"
            raise StageError(message, "give both stages the same features.blocks")
        weights = block_weights(torch.tensor([earlier[FEATURE_LOSS + b] for b in blocks]), config.sign, config.tau)
        notes = tuple(
            LayerNote(
                layer=block, result=f"feature weight {weight:.3g}", reason=f"sign {config.sign}, tau {config.tau:g}"
            )
            for block, weight in zip(blocks, weights.tolist(), strict=True)
        )
        return weights, notes
