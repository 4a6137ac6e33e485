"""The stage `export`: write the ONNX file and compare it with the graph."""

from __future__ import annotations

import shutil

from vitslim.data import Dataset
from vitslim.errors import Problem
from vitslim.files import MODEL_FILE
from vitslim.graph.edits.fake_quant import quantized_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.formats.file_form import FLOAT8_OPSET, INT4_OPSET
from vitslim.recipe.formats.profiles import Profile, profiles_with
from vitslim.recipe.stages import Export
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.annotate import LayerAnnotation
from vitslim.stages.export.check import OnnxFile, check_parity, check_stored_weights, compare_outputs
from vitslim.stages.export.onnx_export import ExportSummary, export_onnx, read_summary
from vitslim.stages.export.overflow import first_overflow
from vitslim.training.evaluate import predict, sqnr_db
from vitslim.training.tasks import task_for
from vitslim.units import FLOAT_BITS, container_bits

BATCH = 16
PARITY_IMAGES = 64
"""The file is compared with the graph on at most 64 calibration images."""


class ExportStage:
    """Writes `model.onnx` into the folder of the stage."""

    def __init__(self, config: Export) -> None:
        self.config = config

    @property
    def profile(self) -> Profile:
        """The form of the file."""
        return self.config.export_profile

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Return a problem if a file of the profile or of the opset cannot hold the quantizers of the model."""
        found = (_unsupported(sketch, self.profile), _opset_too_low(sketch, self.config.opset))
        return [problem for problem in found if problem is not None]

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch: export changes nothing."""
        return sketch

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Write the file, then compare it with the graph: the stored integers exactly, the outputs on real images."""
        calibration = context.data.calibration
        images = calibration.balanced(PARITY_IMAGES)
        summary = self._written(graph, context, images)
        for line in first_overflow(summary.overflows):
            context.progress.say(line)
        check_stored_weights(summary.path, graph)
        module = graph.copy().module
        expected, _ = predict(module, images, BATCH, context.progress, "checking: graph")
        found, _ = predict(OnnxFile(summary.path), images, BATCH, context.progress, "checking: ONNX file")
        parity = compare_outputs(expected, found, task_for(graph.source))
        quantized = quantized_layers(graph.module)
        check_parity(parity, exact=not quantized and not self.profile.half_precision)
        metrics = {"onnx_bytes": float(summary.bytes), **parity.metrics()}
        if quantized:
            fused, _ = predict(OnnxFile(summary.path, exact=False), images, BATCH, context.progress, "checking: fused")
            metrics["parity_fused_sqnr_db"] = sqnr_db(expected, fused)
        skipped = summary.unquantized if quantized else ()
        return StageResult(
            graph,
            changes=tuple(LayerNote(layer=a.layer, result=_describe(a)) for a in summary.annotations if _describe(a)),
            skipped=(
                *(LayerNote(layer=name, result="stored in float", reason="not quantized") for name in skipped),
                *(
                    LayerNote(layer=one.layer, result="stays in float32", reason=one.reason)
                    for one in summary.overflows
                ),
            ),
            metrics=metrics,
        )

    def _written(self, graph: ModelGraph, context: StageContext, images: Dataset) -> ExportSummary:
        """Write the file, or copy the equal one of the stage before. images: for the ranges of half precision."""
        path = context.workdir / MODEL_FILE
        if context.written is not None and not self.profile.half_precision:
            shutil.copyfile(context.written, path)
            return read_summary(path)
        context.progress.say("writing the ONNX file")
        ranges = images.stacked().numpy() if self.profile.half_precision else None
        names = context.data.calibration.class_names if graph.source.classes else ()
        return export_onnx(graph, path, self.profile, names, self.config.form, ranges)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Return a problem if the graph has other edits than before. `apply` has checked the file."""
        return [] if before.edits == after.edits else [Problem("export", "changed the graph")]


def _unsupported(sketch: ModelSketch, profile: Profile) -> Problem | None:
    """Return a problem for the first quantizer of a model that a profile cannot store."""
    if sketch.bits and not profile.quantized:
        allowed = profiles_with(lambda other: other.quantized)
        message = f"`profile: {profile.name}` stores floats only, and the model is quantized"
        return Problem("profile", message, f"use {allowed}, or remove the quantize stage")
    if sketch.attention_bits and not profile.integer_attention:
        allowed = profiles_with(lambda other: other.integer_attention)
        message = f"`profile: {profile.name}` has signed activations only, and softmax outputs are unsigned"
        return Problem("profile", message, f"use {allowed}, or set `attention: false` in the quantize stage")
    if any(bits.integer_scales for bits in sketch.bits.values()) and not profile.integer_group_scales:
        allowed = profiles_with(lambda other: other.integer_group_scales)
        message = f"`profile: {profile.name}` cannot store group-wise integer scales"
        return Problem("profile", message, f"use {allowed}, or remove `group_size` from the quantize stage")
    if any(bits.float8 for bits in sketch.bits.values()) and not profile.float8:
        allowed = profiles_with(lambda other: other.float8)
        message = f"`profile: {profile.name}` cannot store 8-bit floats"
        return Problem("profile", message, f"use {allowed}, or `format: integer` in the quantize stage")
    return None


def _opset_too_low(sketch: ModelSketch, opset: int) -> Problem | None:
    """Return a problem if the quantized weights of a model need a later opset."""
    for bits in sketch.bits.values():
        needs_int4 = bits.group_size > 0 or container_bits(bits.weight) == 4
        needed = FLOAT8_OPSET if bits.float8 else INT4_OPSET if needs_int4 else 0
        if needed > opset:
            kind = "8-bit floats" if bits.float8 else "INT4 weights and weight groups"
            return Problem("opset", f"{kind} need opset {needed}, got `opset: {opset}`", f"set `opset: {needed}`")
    return None


def _describe(layer: LayerAnnotation) -> str:
    """Describe a layer, such as `INT8 per channel, 2:4`; empty for a dense float layer."""
    quantized = (
        f"{'FP8' if layer.format else f'INT{layer.weight_bits}'} per {layer.granularity.replace(':', ' of ')}"
        if layer.weight_bits < FLOAT_BITS
        else ""
    )
    return ", ".join(part for part in (quantized, layer.sparsity) if part)
