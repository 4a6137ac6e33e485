"""From learned bits to the quantizers of a graph: widths, scales and sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import activation_scale_name, insert_fake_quant, layer_nodes, weight_scale_name
from vitslim.graph.edits.quantize_attention import AttentionSite, quantize_attention
from vitslim.graph.edits.read_pixels import PIXEL, PIXEL_BITS, pixel_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.noise_form import NoiseProxy
from vitslim.graph.ops.pseudo_quant import levels
from vitslim.results import TensorBits
from vitslim.stages.quantize.nipq.costs import AverageBits, Cost
from vitslim.stages.quantize.nipq.tensors import Tensors, operand_widths, pairs
from vitslim.stages.quantize.nipq.widths import choose_widths, smallest_widths
from vitslim.units import FLOAT_BITS, container_bits


def assign_widths(learned: Tensor, tensors: Tensors, costs: Sequence[Cost]) -> dict[str, int]:
    """Return the bits of each tensor, by name: allowed widths near the learned bits (n,), within the limits.

    Raises ValueError if the smallest widths cost more than a limit.
    """
    allowed = [one.allowed for one in tensors.values()]
    widths = torch.tensor([_nearest(bits, one) for bits, one in zip(learned.tolist(), allowed, strict=True)])
    for cost in costs:
        members = cost.elements > 0 if isinstance(cost, AverageBits) else torch.ones(len(allowed), dtype=torch.bool)
        options = [
            one if member else (int(width),) for one, member, width in zip(allowed, members, widths, strict=True)
        ]
        widths = choose_widths(learned, options, cost, pairs([cost]))
    return dict(zip(tensors, widths.tolist(), strict=True))


def uniform_bits(tensors: Tensors, costs: Sequence[Cost]) -> Tensor:
    """Return bits that are equal for all learned tensors and meet the limits, as far as that is possible: (n,)."""
    low = torch.tensor([one.low for one in tensors.values()])
    high = torch.tensor([one.high for one in tensors.values()])
    least, most = 0.0, 1.0
    for _ in range(30):
        middle = (least + most) / 2
        exceeds = any(float(cost(low + middle * (high - low))) > cost.limit for cost in costs)
        least, most = (least, middle) if exceeds else (middle, most)
    return low + least * (high - low)


def smallest_cost(tensors: Tensors, cost: Cost) -> float:
    """Return the cost of the smallest widths."""
    return cost.deployed(smallest_widths([one.allowed for one in tensors.values()]))


def insert_learned(
    graph: ModelGraph,
    blocks: Sequence[str],
    proxies: Mapping[str, NoiseProxy],
    widths: Mapping[str, int],
    ends: Mapping[str, Tensor],
) -> tuple[ModelGraph, tuple[FakeQuantSite, ...]]:
    """Return a new graph with real quantizers of these bits and ranges, and the sites of its layers.

    blocks: those whose attention is quantized. proxies, widths, ends: by the names of scales; ends are the largest
    values of the ranges.
    """
    scales = {n: ends[n] / levels(torch.tensor(float(widths[n])), one.signed) for n, one in proxies.items()}
    sites = [_site(graph, weight, proxies, widths, scales) for weight in _quantized(graph, proxies)]
    attention = [AttentionSite(block, operand_widths(block, widths), narrow=True) for block in blocks]
    graph = quantize_attention(graph, attention, scales) if attention else graph
    return insert_fake_quant(graph, sites, scales), tuple(sites)


def learned_table(tensors: Tensors, learned: Tensor, widths: Mapping[str, int]) -> tuple[TensorBits, ...]:
    """Return the bits of each tensor for the report."""
    return tuple(
        TensorBits(
            layer=one.layer,
            operand="weight" if one.is_weight else "activation",
            learned=bits,
            bits=widths[name],
            container=container_bits(widths[name]) if one.is_weight else PIXEL_BITS,
        )
        for (name, one), bits in zip(tensors.items(), learned.tolist(), strict=True)
    )


def _nearest(bits: float, allowed: Sequence[int]) -> int:
    return min(allowed, key=lambda width: (abs(width - bits), -width))


def _quantized(graph: ModelGraph, proxies: Mapping[str, NoiseProxy]) -> list[str]:
    return [weight for weight in layer_nodes(graph.module) if weight_scale_name(weight) in proxies]


def _site(
    graph: ModelGraph,
    weight: str,
    proxies: Mapping[str, NoiseProxy],
    widths: Mapping[str, int],
    scales: dict[str, Tensor],
) -> FakeQuantSite:
    """Return the quantizers of one layer; the scale of pixels is added to the scales."""
    bits, per_tensor = widths[weight_scale_name(weight)], proxies[weight_scale_name(weight)].end.dim() == 0
    name = activation_scale_name(weight)
    if weight in pixel_layers(graph):
        scales[name] = torch.tensor(PIXEL)
        return FakeQuantSite(weight, bits, PIXEL_BITS, per_tensor=per_tensor)
    if name not in proxies:
        return FakeQuantSite(weight, bits, FLOAT_BITS, per_tensor=per_tensor)
    proxy = proxies[name]
    zero_point = None if proxy.signed else 0
    return FakeQuantSite(
        weight, bits, widths[name], zero_point, narrow=proxy.signed, shift=proxy.shift, per_tensor=per_tensor
    )
