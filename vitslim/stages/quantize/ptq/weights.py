"""Scales of the weight of one layer, and the values that its codes stand for."""

from __future__ import annotations

from torch import Tensor

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import weight_scale_name, weight_zero_points_name
from vitslim.graph.ops.fake_quant import fake_quant, weight_range
from vitslim.recipe.stages import Ptq
from vitslim.stages.quantize.calibration.ranges import (
    NO_PAIR_LIMIT,
    block_range,
    limit_pairs,
    pair_safe_scale,
    weight_scale,
)
from vitslim.stages.quantize.ptq.integer_scales import block_multiples, whole_scale
from vitslim.stages.reconstruction.curvature import Curvature
from vitslim.stages.reconstruction.gptq import Limits, gptq, refine
from vitslim.units import PAIR_LIMIT

REFINED_BITS = 4
"""Codes of more bits are near enough to what they round, and in pairs they have a limit of their own. All codes of
DeiT-Tiny so, on classes that were not calibrated on: 26.6 dB in place of 26.5, in half as much time again."""


def pair_limit(config: Ptq) -> int:
    """What two neighboring codes may add up to: without a limit where their products need not fit 16 bits."""
    return NO_PAIR_LIMIT if not config.reduce_range or config.activations == "float" else PAIR_LIMIT


def weight_scales(weight: Tensor, site: FakeQuantSite, pairs: int) -> dict[str, Tensor]:
    """Scales of a weight, and zero points where it has some, by name. `pairs` is the limit of neighboring codes."""
    limits, name = weight_range(site.weight_bits, site.group_size), weight_scale_name(site.weight)
    if site.integer_scales:
        return {name: whole_scale(weight, site.weight_bits, site.group_size, pairs)}
    if site.weight_zero_points:
        scale, zeros = block_range(weight, limits, site.group_size)
        return {name: scale, weight_zero_points_name(site.weight): zeros}
    scale = weight_scale(weight, limits, site.group_size)
    return {name: scale if site.group_size else pair_safe_scale(weight, scale, pairs)}


def rounded(
    site: FakeQuantSite, weight: Tensor, scales: dict[str, Tensor], curvature: Curvature | None, pairs: int
) -> Tensor:
    """What the codes of a weight stand for, each rounded for itself where nothing says what that costs.

    Codes of few bits change their scale in `scales` as well. `pairs` is the limit that `scales` were found with.
    """
    if site.integer_scales:
        return _to_multiples(site, weight, scales, curvature, pairs)
    name = weight_scale_name(site.weight)
    codes, scale = weight_range(site.weight_bits, site.group_size), scales[name]
    zeros = scales.get(weight_zero_points_name(site.weight))
    if curvature is None:
        nearest: Tensor = fake_quant(weight, scale, 0, 1 if site.group_size else 0, *codes, site.group_size, zeros)
        return nearest
    limits: Limits = codes
    if zeros is not None:
        spread = zeros.repeat_interleave(site.group_size, dim=1)
        limits = (codes[0] - spread, codes[1] - spread)
    values = gptq(weight, scale, curvature, limits, site.group_size)
    if site.weight_bits <= REFINED_BITS:
        values, scales[name] = refine(weight, values, scale, curvature, limits)
    if site.group_size:
        return values
    return limit_pairs((values / scales[name][:, None]).round(), pairs) * scales[name][:, None]


def _to_multiples(
    site: FakeQuantSite, weight: Tensor, scales: dict[str, Tensor], curvature: Curvature | None, pairs: int
) -> Tensor:
    """The same where the scale of each block is a whole multiple of that of its channel."""
    name, codes = weight_scale_name(site.weight), weight_range(site.weight_bits, site.group_size)
    multiples = block_multiples(weight, scales[name], site.weight_bits, site.group_size, pairs)
    scale = scales[name][:, None] * multiples
    if curvature is None:
        nearest: Tensor = fake_quant(weight, scale, 0, 1, *codes, site.group_size)
        return nearest
    unit = multiples.repeat_interleave(site.group_size, dim=1)
    values = gptq(weight, scale, curvature, codes, site.group_size)
    limits = codes[0] * unit, codes[1] * unit
    values, scales[name] = refine(weight, values, scales[name], curvature, limits, unit)
    return values
