"""Group-wise INT4 weights with integer group scales (QServe, Lin et al., 2024). Pure tensor mathematics.

The group scale is an integer multiple of the channel scale, so a weight times its group scale is an INT8 value and the
GEMM stays integer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.graph.ops.fake_quant import weight_range
from vitslim.graph.ops.group_scales import GROUP_SCALE_MAX
from vitslim.stages.quantize.weights.weight_scales import mse_scale
from vitslim.units import PAIR_LIMIT

FRACTIONS = tuple(percent / 100 for percent in range(70, 121, 5))
"""Candidates for the channel scale: fractions of the scale of its widest group over the largest group scale."""


def channel_scale(weight: Tensor, bits: int, group_size: int, limit: int = PAIR_LIMIT) -> Tensor:
    """Return the channel scales of a weight (out, in), float (out,).

    Of the candidates, that with the least squared error if each group takes its best integer multiple. `limit` as in
    `group_multiples`.
    """
    values = _groups(weight, group_size)
    widest = mse_scale(values.flatten(end_dim=1), weight_range(bits, group_size)).reshape(values.shape[:2]).amax(dim=1)
    candidates = torch.stack([fraction * widest / _largest_multiple(bits, limit) for fraction in FRACTIONS])
    errors = torch.stack([_errors(values, bits, scale, limit).amin(dim=0).sum(dim=1) for scale in candidates])
    best: Tensor = candidates.gather(0, errors.argmin(dim=0, keepdim=True))[0]
    return best


def group_multiples(weight: Tensor, scale: Tensor, bits: int, group_size: int, limit: int = PAIR_LIMIT) -> Tensor:
    """Return the group scale of each group as a multiple of the channel scale (out,): float (out, in / group_size).

    The multiple has the least squared error for the weight (out, in). Integers of a group lie within
    `weight_range(bits, group_size)`; times their group scale they are 8-bit integers, and no two of these have a sum
    above `limit`.
    """
    return _errors(_groups(weight, group_size), bits, scale, limit).argmin(dim=0) + 1.0


def _groups(weight: Tensor, group_size: int) -> Tensor:
    """Reshape a weight (out, in) to (out, groups, group_size)."""
    return weight.detach().reshape(len(weight), -1, group_size)


def _largest_multiple(bits: int, limit: int) -> int:
    return min(limit >> bits, GROUP_SCALE_MAX)


def _errors(values: Tensor, bits: int, scale: Tensor, limit: int) -> Tensor:
    """Return the squared error of each group of values (out, groups, n) for the multiples 1, 2, ... of the scale (out,)
    of its channel: float (multiples, out, groups)."""
    errors = []
    for multiple in range(1, _largest_multiple(bits, limit) + 1):
        group_scale = (multiple * scale)[:, None, None]
        integers = (values / group_scale).round_().clamp_(*weight_range(bits, values.shape[2]))
        errors.append(integers.mul_(group_scale).sub_(values).square_().sum(dim=2))
    return torch.stack(errors)
