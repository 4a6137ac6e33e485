"""Edits of the float graph before its layers are quantized: each returns a new graph, or the same where it is not used.

All but the quantizers of attention leave the outputs of the model unchanged.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import compress

import torch

from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.edits.quantize_attention import (
    attention_blocks,
    decomposed,
    operands,
    quantize_attention,
)
from vitslim.graph.edits.read_pixels import PIXEL_BITS, read_pixels, reads_pixels
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.histogram import range_statistic
from vitslim.stages.quantize.observe import observe
from vitslim.stages.quantize.rotation import find_streams, rotate
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.stages.quantize.smoothing.search import Smoothed, smooth_activations


def rotate_streams(
    graph: ModelGraph, scheme: QuantScheme, seed: int
) -> tuple[ModelGraph, tuple[LayerNote, ...], tuple[LayerNote, ...]]:
    """Rotate the residual streams, and return notes on those that are rotated and on all others."""
    if not scheme.rotate:
        return graph, (), ()
    streams, fixed = find_streams(graph)
    rotated = tuple(LayerNote(layer=one.name, result="rotated to a random basis") for one in streams)
    skipped = tuple(LayerNote(layer=name, result="not rotated", reason=why) for name, why in fixed.items())
    return rotate(graph, streams, seed), rotated, skipped


def smooth(graph: ModelGraph, scheme: QuantScheme, context: StageContext, weights: Collection[str]) -> Smoothed:
    """Return a copy of the graph whose quantized activations are smoothed."""
    if not scheme.smooth or not scheme.integer_matmuls:
        return Smoothed(graph.copy(), {})
    return smooth_activations(graph, scheme, context, weights)


def read_image_as_pixels(
    graph: ModelGraph, scheme: QuantScheme, context: StageContext, weights: Collection[str]
) -> ModelGraph:
    """Let the layers that read the image read its 8-bit pixels, which is lossless."""
    if not scheme.integer_matmuls or scheme.activation_bits != PIXEL_BITS:
        return graph
    layers = layer_nodes(graph.module)
    able = [all(reads_pixels(node, tensor_of(graph.module, w)) for node in layers[w]) for w in weights]
    if not any(able):
        return graph
    mean, std = context.data.calibration.source.normalization
    return read_pixels(graph, tuple(compress(weights, able)), mean, std)


def quantize_attention_matmuls(graph: ModelGraph, scheme: QuantScheme, context: StageContext) -> ModelGraph:
    """Quantize the operands of both matmuls of each attention, with ranges from the calibration images."""
    if not scheme.attention:
        return graph
    blocks = attention_blocks(graph)
    plain = decomposed(graph, blocks)
    found = operands(plain, blocks)
    statistics = {name: range_statistic(scheme.calibrate) for name in found}
    places = {name: [(operand.matmul, operand.place)] for name, operand in found.items()}
    observe(plain, statistics, context, "calibrating attention", places)
    sites = {block: scheme.attention_site(block) for block in blocks}
    ranges = {
        name: statistics[name].find_range(sites[operand.block].bits_of(operand.name), operand.zero_point is None)
        for name, operand in found.items()
    }
    scales = {name: torch.tensor(one.scale) for name, one in ranges.items()}
    return quantize_attention(graph, tuple(sites.values()), scales)
