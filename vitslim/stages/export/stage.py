"""The stage `export`: the ONNX file, and the proof that it computes what the graph computes."""

from __future__ import annotations

from vitslim.errors import Problem
from vitslim.graph.insert_fake_quant import quantised_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Export
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.annotate import LayerAnnotation
from vitslim.stages.export.check import OnnxFile, check_parity, check_stored_weights, compare_logits
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.training.evaluate import predict
from vitslim.units import FLOAT_BITS

MODEL_FILE = "model.onnx"
BATCH = 16
JUDGED_IMAGES = 64
"""File and graph are compared on so many calibration images, at most."""


class ExportStage:
    """Writes `model.onnx` into the stage's folder; the graph stays as it is."""

    def __init__(self, config: Export) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:  # noqa: ARG002
        """Every graph can be tried."""
        return []

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Export changes nothing."""
        return sketch

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Write the file, then compare it with the graph: the stored integers exactly, the logits on real images."""
        context.progress.say("writing the ONNX file")
        summary = export_onnx(graph, context.workdir / MODEL_FILE)
        check_stored_weights(summary.path, graph)
        calibration = context.data.calibration
        images = calibration.subset(range(min(JUDGED_IMAGES, len(calibration))))
        module = graph.copy().module
        expected, _ = predict(module, images, BATCH, context.progress, "checking: graph")
        found, _ = predict(OnnxFile(summary.path), images, BATCH, context.progress, "checking: ONNX Runtime")
        parity = compare_logits(expected, found)
        quantised = quantised_layers(graph.module)
        check_parity(parity, quantised=bool(quantised))
        skipped = summary.unquantised if quantised else ()
        return StageResult(
            graph,
            changes=tuple(LayerNote(layer=a.layer, what=_describe(a)) for a in summary.annotations if _describe(a)),
            skipped=tuple(LayerNote(layer=name, what="stored in float", reason="not quantised") for name in skipped),
            metrics={"onnx_bytes": float(summary.bytes), **parity.metrics()},
        )

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """The graph has no new edits; the file itself was checked when it was written."""
        return [] if before.edits == after.edits else [Problem("export", "changed the graph")]


def _describe(layer: LayerAnnotation) -> str:
    """`INT8 per channel, 2:4`; empty for a dense float layer."""
    quantised = f"INT{layer.weight_bits} per {layer.granularity}" if layer.weight_bits < FLOAT_BITS else ""
    return ", ".join(part for part in (quantised, layer.sparsity) if part)
