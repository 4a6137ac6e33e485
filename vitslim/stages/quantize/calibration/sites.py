"""The quantizers of each layer, with scales from the calibration images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import activation_scale_name, layer_nodes
from vitslim.graph.edits.read_pixels import PIXEL, PIXEL_BITS, pixel_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, tensor_of
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.histogram import Extremes, range_statistic
from vitslim.stages.quantize.layer_noise import measure_weight_noise
from vitslim.stages.quantize.layers import first_last_layers, reads_image
from vitslim.stages.quantize.observe import observe
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.stages.quantize.weights.forms import MORE_BITS, eight_bit_weights, weight_form
from vitslim.stages.quantize.weights.rounding import round_weight, weight_scales
from vitslim.units import FLOAT_BITS


def find_sites(
    graph: ModelGraph,
    scheme: QuantScheme,
    context: StageContext,
    weights: Collection[str],
    known: Mapping[str, Extremes] | None = None,
) -> tuple[dict[str, FakeQuantSite], dict[str, Tensor]]:
    """Return the quantizers of each layer, by weight, and the scales by parameter name.

    known: ranges of input activations, by weight. The others are observed on the calibration images; with
    `calibrate: mse` all are, because their histograms are needed.
    """
    ranges = dict(known or {}) if scheme.calibrate == "minmax" else {}
    pixels = pixel_layers(graph)
    needed = [w for w in weights if w not in pixels and not reads_image(graph.module, w)]
    missing = {w: range_statistic(scheme.calibrate) for w in needed if w not in ranges}
    if scheme.activations == "static" and missing:
        observe(graph, missing, context, "calibrating")
    ranges |= missing
    scales: dict[str, Tensor] = {}
    sites = {
        weight: _with_activation(graph, scheme, site, ranges, scales)
        for weight, site in _weight_sites(graph, scheme, context, weights).items()
    }
    _distinguish(graph.module, scales)
    return sites, scales


def _weight_sites(
    graph: ModelGraph, scheme: QuantScheme, context: StageContext, weights: Collection[str]
) -> dict[str, FakeQuantSite]:
    """Return sites with float activations. With `average_bits`, the weights that add most noise get more bits."""
    ends, sum_max = first_last_layers(graph), scheme.adjacent_sum_max
    found = {w: _weight_site(graph, scheme, w, w in ends) for w in weights}
    if scheme.average_bits is None:
        return found
    tensors = {w: tensor_of(graph.module, w).detach() for w in weights}
    nearest = {w: round_weight(site, tensors[w], weight_scales(tensors[w], site, sum_max), None, sum_max)
               for w, site in found.items() if site.weight_bits < MORE_BITS}  # fmt: skip
    noise = measure_weight_noise(graph, nearest, context)
    sizes, bits = ({w: tensors[w].numel() for w in weights}, {w: site.weight_bits for w, site in found.items()})
    raised = eight_bit_weights(noise, sizes, bits, scheme.average_bits)
    return found | {w: _weight_site(graph, scheme, w, w in ends, more_bits=True) for w in raised}


def _weight_site(
    graph: ModelGraph, scheme: QuantScheme, weight: str, first_or_last: bool, more_bits: bool = False
) -> FakeQuantSite:
    tensor = tensor_of(graph.module, weight)
    form = weight_form(scheme, first_or_last, tensor.dim() == 2, tensor.shape[1], more_bits)
    return FakeQuantSite(
        weight,
        scheme.own_weight_bits(weight) or form.bits,
        FLOAT_BITS,
        group_size=form.group_size,
        weight_zero_points=scheme.zero_points and form.group_size > 0,
        integer_scales=form.integer_scales,
    )


def _with_activation(
    graph: ModelGraph,
    scheme: QuantScheme,
    site: FakeQuantSite,
    ranges: Mapping[str, Extremes],
    scales: dict[str, Tensor],
) -> FakeQuantSite:
    """Return a site with its activation quantized, and add its scales."""
    weight = site.weight
    scales |= weight_scales(tensor_of(graph.module, weight), site, scheme.adjacent_sum_max)
    if weight in pixel_layers(graph):
        scales[activation_scale_name(weight)] = torch.tensor(PIXEL)
        return replace(site, activation_bits=PIXEL_BITS)
    if not scheme.integer_matmuls or reads_image(graph.module, weight):
        return site
    if scheme.activations == "dynamic":
        return replace(site, activation_bits=8, dynamic=True)
    bits = scheme.bits_of_activation(weight)
    found = ranges[weight].find_range(bits, scheme.symmetric)
    scales[activation_scale_name(weight)] = torch.tensor(found.scale)
    return replace(site, activation_bits=bits, zero_point=found.zero_point)


def _distinguish(module: GraphModule, scales: dict[str, Tensor]) -> None:
    """Give layers that read one tensor activation scales that differ in the last digit.

    Runtimes merge equal quantizers, and ONNX Runtime does not fuse a matmul whose quantized input has other readers.
    """
    readers: dict[Node, list[str]] = {}
    for weight, nodes in layer_nodes(module).items():
        readers.setdefault(argument(nodes[0], 0), []).append(activation_scale_name(weight))
    for names in readers.values():
        for before, name in pairwise([name for name in names if name in scales]):
            if scales[name] <= scales[before]:
                scales[name] = torch.nextafter(scales[before], torch.tensor(torch.inf))
