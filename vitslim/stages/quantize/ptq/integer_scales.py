"""Blocks of weights whose scales are whole multiples of one for each output channel. Pure tensor mathematics.

As in QServe (Lin et al., 2024): a code of four bits times the whole number of its block is a code of eight bits, so a
file holds four bits and the product is one of codes, with one scale for each output channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.graph.ops.fake_quant import weight_range
from vitslim.graph.ops.group_scales import GROUP_SCALE_MAX
from vitslim.stages.quantize.calibration.ranges import mse_scale
from vitslim.units import PAIR_LIMIT

FRACTIONS = tuple(percent / 100 for percent in range(70, 121, 5))
"""Fractions of the scale of a channel's widest block that are tried as its largest multiple."""


def whole_scale(weight: Tensor, bits: int, block: int, limit: int = PAIR_LIMIT) -> Tensor:
    """The scale of each output channel of a weight (out, in), of whose multiples its blocks have the least squared
    error: float (out,), the best of those that were tried. `limit` as in `block_multiples`."""
    values = _blocks(weight, block)
    widest = mse_scale(values.flatten(end_dim=1), weight_range(bits, block)).reshape(values.shape[:2]).amax(dim=1)
    tried = torch.stack([fraction * widest / _largest_multiple(bits, limit) for fraction in FRACTIONS])
    errors = torch.stack([_errors(values, bits, scale, limit).amin(dim=0).sum(dim=1) for scale in tried])
    best: Tensor = tried.gather(0, errors.argmin(dim=0, keepdim=True))[0]
    return best


def block_multiples(weight: Tensor, scale: Tensor, bits: int, block: int, limit: int = PAIR_LIMIT) -> Tensor:
    """By which whole number each block of a weight (out, in) multiplies the scale (out,) of its channel, with the least
    squared error: float (out, in / block).

    Codes of a block lie within `weight_range(bits, block)`; times its number they are codes of 8 bits, no two of which
    add up to more than `limit`.
    """
    return _errors(_blocks(weight, block), bits, scale, limit).argmin(dim=0) + 1.0


def _blocks(weight: Tensor, block: int) -> Tensor:
    """(out, blocks, weights of a block)."""
    return weight.detach().reshape(len(weight), -1, block)


def _largest_multiple(bits: int, limit: int) -> int:
    return min(limit >> bits, GROUP_SCALE_MAX)


def _errors(values: Tensor, bits: int, scale: Tensor, limit: int) -> Tensor:
    """Squared error of each block of values (out, blocks, n) with 1, 2, ... times the scale (out,) of its channel:
    float (multiples, out, blocks)."""
    errors = []
    for multiple in range(1, _largest_multiple(bits, limit) + 1):
        step = (multiple * scale)[:, None, None]
        codes = (values / step).round_().clamp_(*weight_range(bits, values.shape[2]))
        errors.append(codes.mul_(step).sub_(values).square_().sum(dim=2))
    return torch.stack(errors)
