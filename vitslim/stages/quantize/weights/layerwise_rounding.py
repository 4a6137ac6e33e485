"""Rounding of all weights of a model, layer after layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from vitslim.data import Dataset
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import activation_scale_name, has_activation_scale
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages.quantize import ROUNDING_IMAGES
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.observe import FORWARD_BATCH, activation_quantizer, solvable_layers
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.stages.quantize.weights.rounding import REFINED_BITS, round_weight
from vitslim.stages.reconstruction.curvature import Curvature
from vitslim.stages.reconstruction.layerwise import LayerSolver, solvable_images


def round_weights(
    graph: ModelGraph,
    scheme: QuantScheme,
    sites: Mapping[str, FakeQuantSite],
    scales: dict[str, Tensor],
    context: StageContext,
) -> ModelGraph:
    """Return a graph with rounded weights and corrected biases; the same graph if the scheme has neither.

    Each layer is solved on the quantized activations that the layers before it produce. Scales may change in place.
    """
    compensate = scheme.rounding == "gptq"
    integer_scales = any(site.integer_scales for site in sites.values())
    if not compensate and not scheme.bias_correction and not integer_scales:
        return graph

    def solve(weight: str, matrix: Tensor, curvature: Curvature) -> Tensor:
        known = curvature if compensate else None
        return round_weight(sites[weight], matrix, scales, known, scheme.adjacent_sum_max)

    solver = LayerSolver(
        torch.cat([images for images, _ in rounding_images(graph, sites, context).batches(FORWARD_BATCH)]),
        context.progress,
        "rounding",
        inputs={
            weight: activation_quantizer(site, scales[activation_scale_name(weight)])
            for weight, site in sites.items()
            if has_activation_scale(site)
        },
        sensitive=compensate,
        joint=[weight for weight, site in sites.items() if site.weight_bits <= REFINED_BITS],
        biases=scheme.bias_correction,
    )
    return solver(graph, [weight for weight in solvable_layers(graph.module) if weight in sites], solve)


def rounding_images(graph: ModelGraph, weights: Collection[str], context: StageContext) -> Dataset:
    """Return the calibration images, of all classes, that the rounding of these weights uses."""
    calibration = context.data.calibration
    most = min(ROUNDING_IMAGES, len(calibration))
    return calibration.balanced(solvable_images(graph, weights, most))
