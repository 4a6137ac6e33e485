"""The stage `quantize: {method: qat}`: quantizers are placed by calibration, then learned with the weights."""

from __future__ import annotations

import torch

from vitslim.errors import Problem, StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Ptq, Qat
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.training.distillation import (
    FEATURE_LOSS,
    block_weights,
    select_blocks,
    train_with_teacher,
    weight_problems,
)


class QatStage:
    """Fake quantizers from calibration, and training with a teacher that learns their steps too (GPUSQ, section 5)."""

    def __init__(self, config: Qat) -> None:
        self.config = config
        self.placing = PtqStage(
            Ptq(
                method="ptq",
                bits=config.bits,
                activation_bits=config.activation_bits,
                activations=config.activations,
                symmetric=config.symmetric,
                smooth=config.smooth,
                reduce_range=config.reduce_range,
                first_last_bits=config.first_last_bits,
                group_size=config.group_size,
                calibrate=config.calibrate,
                rounding=config.rounding,
                activation_scaling="none",
                bias_correction=False,
                skip=config.skip,
            )
        )

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """What post-training quantization asks for, and a loss that is not identically zero."""
        return self.placing.requires(sketch)

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Bits as with post-training quantization."""
        return self.placing.estimate(sketch)

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Calibrate, then train. Zero weights stay zero: their codes are."""
        placed = self.placing.apply(graph, context)
        weights, notes = self._block_weights(placed.graph, context)
        note, metrics = train_with_teacher(
            placed.graph,
            self.config,
            context.data.train,
            lambda name: context.result(name).graph,
            context.seed,
            context.progress,
            label="quantize: training",
            weights=weights,
            keep=context.keep,
        )
        metrics |= {f"before_training_{name}": value for name, value in placed.metrics.items() if "sqnr" in name}
        return StageResult(placed.graph, (note, *notes, *placed.changes), placed.skipped, metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Every chosen layer is quantized, steps are positive, masked weights are zero."""
        return self.placing.ensures(before, after) + weight_problems(before, after)

    def _block_weights(
        self, graph: ModelGraph, context: StageContext
    ) -> tuple[torch.Tensor | None, tuple[LayerNote, ...]]:
        """Weights of the feature losses from those that an earlier stage ended with, and notes that say them."""
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
