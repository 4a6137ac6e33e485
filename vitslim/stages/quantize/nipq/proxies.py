"""The noise proxy of each tensor, with its initial range from calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch.fx import Node

from vitslim.graph.anatomy.patches import has_padding
from vitslim.graph.axes.tensor_shapes import BATCH, tensor_shapes
from vitslim.graph.edits.fake_quant import activation_scale_name, layer_nodes, weight_scale_name
from vitslim.graph.edits.quantize_attention import attention_blocks, operands
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, tensor_of
from vitslim.graph.noise_form import NoiseProxy
from vitslim.recipe.stages import Nipq
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.histogram import Extremes, range_statistic
from vitslim.stages.quantize.nipq.ranges import ActivationForm, activation_form, weight_end
from vitslim.stages.quantize.nipq.tensors import QuantizedTensor, Tensors
from vitslim.stages.quantize.observe import Operands, observe

PROBABILITIES = ActivationForm(signed=False, shift=0.0, end=1.0)
"""Outputs of softmax: their range is not learned."""
PROBABILITY_SCALE = ".attention.probability_scale"
"""End of the names of their scales."""


def activation_operands(graph: ModelGraph, tensors: Tensors) -> Operands:
    """Return the nodes that read each activation, with the position of the operand. Attention must be decomposed."""
    found = {
        activation_scale_name(weight): [(node, 0) for node in nodes]
        for weight, nodes in layer_nodes(graph.module).items()
    }
    found |= {n: [(one.matmul, one.place)] for n, one in operands(graph, attention_blocks(graph)).items()}
    return {name: readers for name, readers in found.items() if name in tensors}


def count_elements(graph: ModelGraph, places: Operands) -> dict[str, int]:
    """Return the elements of each activation for one image."""
    shapes = tensor_shapes(graph.module, graph.source.image)
    return {n: sum(prod(shapes[argument(*one)]) // BATCH for one in readers) for n, readers in places.items()}


def find_proxies(
    graph: ModelGraph, config: Nipq, tensors: Tensors, places: Operands, context: StageContext
) -> dict[str, NoiseProxy]:
    """Return the noise proxy of each tensor by name, with ranges from the calibration images.

    places: of `activation_operands`.
    """
    fixed = {name for name in places if name.endswith(PROBABILITY_SCALE)}
    observed = {name: range_statistic(config.calibrate) for name in places if name not in fixed}
    observe(graph, observed, context, "calibrating", places)
    proxies = {}
    for weight in layer_nodes(graph.module):
        if (name := weight_scale_name(weight)) in tensors:
            values, per_channel = tensor_of(graph.module, weight), config.granularity == "per-channel"
            end = weight_end(values, start_bits(tensors[name]), config.calibrate, per_channel)
            proxies[name] = _proxy(tensors[name], ActivationForm(True, 0.0, 0.0), end, config.learn_ranges)
    for name, readers in places.items():
        form = PROBABILITIES if name in fixed else _form(config, tensors[name], observed, name, readers)
        learns = config.learn_ranges and name not in fixed
        proxies[name] = _proxy(tensors[name], form, torch.tensor(form.end), learns)
    return {name: proxies[name] for name in tensors}


def start_bits(tensor: QuantizedTensor) -> int:
    """Return the bits that training starts with: the middle of the range."""
    return round((tensor.low + tensor.high) / 2)


def _form(
    config: Nipq,
    tensor: QuantizedTensor,
    observed: Mapping[str, Extremes],
    name: str,
    readers: Sequence[tuple[Node, int]],
) -> ActivationForm:
    shiftable = not any(has_padding(node) for node, _ in readers)  # padding with zeros comes after the shift
    return activation_form(observed[name], start_bits(tensor), config.calibrate, shiftable)


def _proxy(tensor: QuantizedTensor, form: ActivationForm, end: torch.Tensor, learns: bool) -> NoiseProxy:
    return NoiseProxy(tensor.low, tensor.high, form.signed, end, form.shift, learns)
