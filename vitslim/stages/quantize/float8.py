"""Quantization to 8-bit floats (E4M3): weights per output channel, activations per tensor, ranges from calibration.

Source: FP8 formats for deep learning (Micikevicius et al., 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import activation_scale_name, insert_fake_quant, weight_scale_name
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.ops.fake_quant import MIN_SCALE
from vitslim.graph.ops.float8 import FLOAT8_MAX
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.histogram import Extremes
from vitslim.stages.quantize.layers import quantizable_layers, reads_image
from vitslim.stages.quantize.observe import observe
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.units import FLOAT_BITS

FLOAT8_BITS = 8


def insert_float8(
    graph: ModelGraph, scheme: QuantScheme, context: StageContext
) -> tuple[ModelGraph, tuple[FakeQuantSite, ...]]:
    """Return a new graph with 8-bit float quantizers, and their sites. Layers that read the image keep float inputs."""
    weights = quantizable_layers(graph, scheme.skip)
    observed = [weight for weight in weights if not reads_image(graph.module, weight)]
    extremes = {weight: Extremes() for weight in observed}
    observe(graph, extremes, context, "calibrating")
    scales = {weight_scale_name(w): channel_scales(tensor_of(graph.module, w)) for w in weights}
    for weight, one in extremes.items():
        peak = torch.tensor(max(one.high, -one.low))
        scales[activation_scale_name(weight)] = _scale(peak)
    bits = {weight: FLOAT8_BITS if weight in extremes else FLOAT_BITS for weight in weights}
    sites = tuple(FakeQuantSite(weight, FLOAT8_BITS, bits[weight], float8=True) for weight in weights)
    return insert_fake_quant(graph, sites, scales), sites


def channel_scales(weight: Tensor) -> Tensor:
    """Return the scale of each output channel of a weight (out, ...), which maps its largest magnitude to 448: (out,).

    The scale of a channel of zeros is 1.
    """
    return _scale(weight.detach().flatten(start_dim=1).abs().amax(dim=1))


def _scale(peak: Tensor) -> Tensor:
    return torch.where(peak > 0, (peak / FLOAT8_MAX).clamp(min=MIN_SCALE), torch.ones_like(peak))
