"""Scales of the weight of one layer, and the weight after rounding."""

from __future__ import annotations

from torch import Tensor

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import weight_scale_name, weight_zero_points_name
from vitslim.graph.ops.fake_quant import fake_quant, weight_range
from vitslim.stages.quantize.weights.group_scales import channel_scale, group_multiples
from vitslim.stages.quantize.weights.reduced_range import limit_adjacent_sums, reduced_range_scale
from vitslim.stages.quantize.weights.weight_scales import group_range, weight_scale
from vitslim.stages.reconstruction.curvature import Curvature
from vitslim.stages.reconstruction.gptq import Limits, gptq, refine

REFINED_BITS = 4
"""Largest number of bits of weights that are refined after GPTQ, together with their scales."""


def weight_scales(weight: Tensor, site: FakeQuantSite, sum_max: int) -> dict[str, Tensor]:
    """Return the scales of a weight, and the zero points if it has any, by parameter name.

    sum_max: largest allowed sum of two adjacent 8-bit weights.
    """
    limits, name = weight_range(site.weight_bits, site.group_size), weight_scale_name(site.weight)
    if site.integer_scales:
        return {name: channel_scale(weight, site.weight_bits, site.group_size, sum_max)}
    if site.weight_zero_points:
        scale, zero_points = group_range(weight, limits, site.group_size)
        return {name: scale, weight_zero_points_name(site.weight): zero_points}
    scale = weight_scale(weight, limits, site.group_size)
    return {name: scale if site.group_size else reduced_range_scale(weight, scale, sum_max)}


def round_weight(
    site: FakeQuantSite, weight: Tensor, scales: dict[str, Tensor], curvature: Curvature | None, sum_max: int
) -> Tensor:
    """Return the values that the integers of a weight represent, of its shape.

    With a curvature, rounding errors are compensated (GPTQ, Frantar et al., ICLR 2023), and weights of at most
    REFINED_BITS change their scale in `scales`; without one, each weight is rounded to nearest.
    `sum_max` as in `weight_scales`.
    """
    if site.integer_scales:
        return _round_to_multiples(site, weight, scales, curvature, sum_max)
    name = weight_scale_name(site.weight)
    integers, scale = weight_range(site.weight_bits, site.group_size), scales[name]
    zero_points = scales.get(weight_zero_points_name(site.weight))
    if curvature is None:
        axis = 1 if site.group_size else 0
        nearest: Tensor = fake_quant(weight, scale, 0, axis, *integers, site.group_size, zero_points)
        return nearest
    limits: Limits = integers
    if zero_points is not None:
        offset = zero_points.repeat_interleave(site.group_size, dim=1)
        limits = (integers[0] - offset, integers[1] - offset)
    values = gptq(weight, scale, curvature, limits, site.group_size)
    if site.weight_bits <= REFINED_BITS:
        values, scales[name] = refine(weight, values, scale, curvature, limits)
    if site.group_size:
        return values
    return limit_adjacent_sums((values / scales[name][:, None]).round(), sum_max) * scales[name][:, None]


def _round_to_multiples(
    site: FakeQuantSite, weight: Tensor, scales: dict[str, Tensor], curvature: Curvature | None, sum_max: int
) -> Tensor:
    """Round a weight whose group scales are integer multiples of the channel scale."""
    name, integers = weight_scale_name(site.weight), weight_range(site.weight_bits, site.group_size)
    multiples = group_multiples(weight, scales[name], site.weight_bits, site.group_size, sum_max)
    scale = scales[name][:, None] * multiples
    if curvature is None:
        nearest: Tensor = fake_quant(weight, scale, 0, 1, *integers, site.group_size)
        return nearest
    unit = multiples.repeat_interleave(site.group_size, dim=1)
    values = gptq(weight, scale, curvature, integers, site.group_size)
    limits = integers[0] * unit, integers[1] * unit
    values, scales[name] = refine(weight, values, scales[name], curvature, limits, unit)
    return values
