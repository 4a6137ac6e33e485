"""Post-training quantization of a graph by a scheme: prepare, calibrate, round, insert fake quantizers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vitslim.graph.edits.fake_quant import insert_fake_quant
from vitslim.graph.memory import images_at_once, outputs_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages.quantize import COMPARED_IMAGES
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.calibration.prepare import (
    quantize_attention_matmuls,
    read_image_as_pixels,
    rotate_streams,
    smooth,
)
from vitslim.stages.quantize.calibration.sites import find_sites
from vitslim.stages.quantize.float8 import insert_float8
from vitslim.stages.quantize.layers import quantizable_layers
from vitslim.stages.quantize.observe import FORWARD_BATCH
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.stages.quantize.weights.layerwise_rounding import round_weights, rounding_images
from vitslim.training.evaluate import predict, sqnr_db
from vitslim.training.tasks import task_for


@dataclass(frozen=True)
class Quantized:
    """A graph with fake quantizers."""

    graph: ModelGraph
    scheme: QuantScheme
    """The scheme with the sites of all quantized layers."""
    rotated: tuple[LayerNote, ...] = ()
    skipped: tuple[LayerNote, ...] = ()
    """Residual streams that were not rotated."""
    metrics: dict[str, float] = field(default_factory=dict)


def insert_quantizers(graph: ModelGraph, scheme: QuantScheme, context: StageContext) -> Quantized:
    """Quantize a float graph by a scheme, on the calibration images. Returns a new graph."""
    if scheme.float8:
        quantized, placed = insert_float8(graph, scheme, context)
        images = {"calibration_images": float(len(context.data.calibration))}
        return Quantized(quantized, replace(scheme, sites=placed), metrics=images)
    weights = quantizable_layers(graph, scheme.skip)
    prepared, rotated, skipped = rotate_streams(graph, scheme, context.seed)
    prepared, ranges = smooth(prepared, scheme, context, weights)
    prepared = read_image_as_pixels(prepared, scheme, context, weights)
    prepared = quantize_attention_matmuls(prepared, scheme, context)
    sites, scales = find_sites(prepared, scheme, context, weights, ranges)
    rounded = round_weights(prepared, scheme, sites, scales, context)
    quantized = insert_fake_quant(rounded, tuple(sites.values()), scales, scheme.limits_sums)
    images = {
        "calibration_images": float(len(context.data.calibration)),
        "rounding_images": float(len(rounding_images(prepared, sites, context))),
    }
    return Quantized(quantized, replace(scheme, sites=tuple(sites.values())), rotated, skipped, images)


def compare(before: ModelGraph, after: ModelGraph, context: StageContext) -> dict[str, float]:
    """Return SQNR and agreement of a quantized graph with the float graph, on calibration images, as metrics."""
    images = context.data.calibration.balanced(outputs_at_once(before.source, COMPARED_IMAGES))
    batch, task = images_at_once(before, FORWARD_BATCH), task_for(before.source)
    reference, _ = predict(before.module, images, batch, context.progress, "comparing: float model", by_ranks=True)
    found, _ = predict(after.module, images, batch, context.progress, "comparing: quantized model", by_ranks=True)
    return {
        "calibration_sqnr_db": sqnr_db(reference, found),
        f"calibration_{task.agreement}": task.agrees(reference, found).float().mean().item(),
    }
