"""The stage `quantize: ptq`: scales from calibration images, then fake quantisers in the graph."""

from __future__ import annotations

from torch import Tensor

from vitslim.errors import Problem, closest
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.insert_fake_quant import (
    QUANTISER_PREFIX,
    input_scale_name,
    insert_fake_quant,
    layer_nodes,
    layer_of,
    quantised_layers,
    weight_scale_name,
)
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.ops.fake_quant import integer_range
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Ptq
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.quantize.calibrate import weight_scale
from vitslim.stages.quantize.observe import Observer
from vitslim.training.evaluate import agreement, predict, sqnr_db

BATCH = 32
"""Images in one calibration step; it bounds memory and changes no result."""

JUDGED_IMAGES = 128
"""The quantised graph is compared with the float graph on so many of the calibration images, at most."""


class PtqStage:
    """Post-training quantisation: symmetric, weights per output channel, inputs of linears per tensor."""

    def __init__(self, config: Ptq) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Layers to skip exist, and something is left to quantise."""
        known = {layer_of(linear.weight): linear.weight for linear in sketch.linears}
        problems = [
            Problem("skip", f"the model has no layer '{name}'", closest(name, known))
            for name in self.config.skip
            if layer_of(name) not in known
        ]
        if sketch.bits:
            problems.append(Problem("method", "the model is quantised already", "keep one quantize stage"))
        if not problems and not self._chosen(tuple(known.values())):
            problems.append(Problem("skip", "every layer is skipped: nothing is left to quantise", "shorten the list"))
        return problems

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """The same model with fewer bits in all layers that are not skipped."""
        chosen = self._chosen(tuple(linear.weight for linear in sketch.linears))
        return sketch.with_bits(chosen, self.config.bits, self.config.bits)

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Observe every layer's input in one pass, choose scales, insert quantisers, compare with the float graph."""
        weights = self._chosen(tuple(layer_nodes(graph.module)))
        observer = Observer(graph.module, weights)
        images = context.data.calibration
        logits, _ = predict(observer, images, BATCH, context.progress, "calibrating")
        sites = [FakeQuantSite(weight, self.config.bits, self.config.bits) for weight in weights]
        quantised = insert_fake_quant(graph, sites, self._scales(graph, observer))
        judged = images.subset(range(min(JUDGED_IMAGES, len(images))))
        after, _ = predict(quantised.module, judged, BATCH, context.progress, "comparing with the float model")
        before = logits[: len(judged)]
        what = f"INT{self.config.bits} weights per output channel, inputs per tensor"
        return StageResult(
            quantised,
            changes=tuple(LayerNote(layer=weight, what=what, reason=self.config.calibrate) for weight in weights),
            skipped=self._skipped(graph, weights),
            metrics={
                "calibration_images": float(len(images)),
                "calibration_sqnr_db": sqnr_db(before, after),
                "calibration_agreement": agreement(before, after),
            },
        )

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Every chosen layer is quantised, with positive finite scales."""
        done = quantised_layers(after.module)
        missing = [w for w in self._chosen(tuple(layer_nodes(before.module))) if w not in done]
        problems = [Problem(weight, "is not quantised after the stage") for weight in missing]
        scales = {name: p for name, p in after.parameters().items() if name.startswith(QUANTISER_PREFIX)}
        bad = [name for name, scale in scales.items() if not bool(((scale > 0) & scale.isfinite()).all())]
        return problems + [Problem(name, "a scale is not a positive finite number") for name in bad]

    def _chosen(self, weights: tuple[str, ...]) -> tuple[str, ...]:
        skip = {layer_of(name) for name in self.config.skip}
        return tuple(weight for weight in weights if layer_of(weight) not in skip)

    def _scales(self, graph: ModelGraph, observer: Observer) -> dict[str, Tensor]:
        """Scale parameters by name. Weights take the narrow range, inputs are judged by the largest code, 127."""
        _, top = integer_range(self.config.bits, narrow=True)
        scales = {}
        for weight, histogram in observer.histograms.items():
            tensor = tensor_of(graph.module, weight)
            scales[input_scale_name(weight)] = histogram.scale(top, self.config.calibrate)
            scales[weight_scale_name(weight)] = weight_scale(tensor, top, self.config.calibrate)
        return scales

    def _skipped(self, graph: ModelGraph, chosen: tuple[str, ...]) -> tuple[LayerNote, ...]:
        others = [weight for weight in layer_nodes(graph.module) if weight not in chosen]
        return tuple(LayerNote(layer=weight, what="stays in float", reason="listed in skip") for weight in others)
