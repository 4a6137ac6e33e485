"""The stage `export`: the ONNX file, and the proof that it computes what the graph computes."""

from __future__ import annotations

from vitslim.data import Dataset
from vitslim.errors import Problem
from vitslim.files import MODEL_FILE
from vitslim.graph.edits.fake_quant import quantized_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Export
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.annotate import LayerAnnotation
from vitslim.stages.export.check import OnnxFile, check_parity, check_stored_weights, compare_logits
from vitslim.stages.export.graph_passes.lower import Target
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.placement import choose_placement
from vitslim.training.evaluate import predict, sqnr_db
from vitslim.units import FLOAT_BITS

BATCH = 16
JUDGED_IMAGES = 64
"""File and graph are compared on so many calibration images, at most."""
PLACED_BY = 256
"""Placements are: a floor of 98.5 % is none on 64 images."""


class ExportStage:
    """Writes `model.onnx` into the stage's folder."""

    def __init__(self, config: Export) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Every graph can be tried; quantizers can be placed only where there are some."""
        if self.config.profile == "auto" and not sketch.bits:
            return [Problem("profile", "auto places quantizers, and nothing is quantized", "add a quantize stage")]
        if self.config.profile == "portable" and sketch.attention_bits:
            message = "portable has signed codes alone, and the probabilities of attention have unsigned ones"
            return [Problem("profile", message, "use auto or ort-cpu, or quantize without attention")]
        if self.config.profile == "fp16" and sketch.bits:
            return [
                Problem("profile", "fp16 stores floats, and the model is quantized", "use portable, or no quantize")
            ]
        return []

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Export changes nothing, but `auto` may leave some inputs in float."""
        return sketch.as_guess() if self.config.profile == "auto" else sketch

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Write the file, then compare it with the graph: the stored integers exactly, the logits on real images."""
        calibration = context.data.calibration
        images = calibration.balanced(JUDGED_IMAGES)
        placement: tuple[LayerNote, ...] = ()
        target: Target = "ort-cpu"
        if self.config.profile == "auto":
            graph, placement = self._placed(graph, calibration.balanced(PLACED_BY), context)
        else:
            target = self.config.profile
        context.progress.say("writing the ONNX file")
        summary = export_onnx(graph, context.workdir / MODEL_FILE, target, calibration.class_names)
        check_stored_weights(summary.path, graph)
        module = graph.copy().module
        expected, _ = predict(module, images, BATCH, context.progress, "checking: graph")
        found, _ = predict(OnnxFile(summary.path), images, BATCH, context.progress, "checking: ONNX file")
        parity = compare_logits(expected, found)
        quantized = quantized_layers(graph.module)
        check_parity(parity, exact=not quantized and target != "fp16")
        metrics = {"onnx_bytes": float(summary.bytes), **parity.metrics()}
        if quantized:
            plain, _ = predict(OnnxFile(summary.path, exact=False), images, BATCH, context.progress, "checking: fused")
            metrics["parity_fused_sqnr_db"] = sqnr_db(expected, plain)
        skipped = summary.unquantized if quantized else ()
        layers = tuple(LayerNote(layer=a.layer, result=_describe(a)) for a in summary.annotations if _describe(a))
        return StageResult(
            graph,
            changes=placement + layers,
            skipped=tuple(LayerNote(layer=name, result="stored in float", reason="not quantized") for name in skipped),
            metrics=metrics,
        )

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """The graph has no new edits, unless quantizers were placed; the file was checked when it was written."""
        if self.config.profile == "auto" or before.edits == after.edits:
            return []
        return [Problem("export", "changed the graph")]

    def _placed(
        self, graph: ModelGraph, images: Dataset, context: StageContext
    ) -> tuple[ModelGraph, tuple[LayerNote, ...]]:
        """The graph with the chosen placement, and a note on each that was measured."""
        best, measured = choose_placement(graph, self.config.floor, images, context)
        floor = self.config.floor
        verdict = "chosen" if best.holds(floor) else f"chosen: none holds {floor.sqnr_db:g} dB, {floor.agreement:.1%}"
        notes = tuple(
            LayerNote(
                layer=f"placement: {p.name}",
                result=f"{p.latency_ms:.3g} ms, {p.sqnr_db:.1f} dB, {p.agreement:.1%} agreement",
                reason=verdict if p is best else "",
            )
            for p in measured
        )
        return best.graph, notes


def _describe(layer: LayerAnnotation) -> str:
    """`INT8 per channel, 2:4`; empty for a dense float layer."""
    quantized = (
        f"INT{layer.weight_bits} per {layer.granularity.replace(':', ' of ')}" if layer.weight_bits < FLOAT_BITS else ""
    )
    return ", ".join(part for part in (quantized, layer.sparsity) if part)
