"""Scales and zero points of weights with the least squared error. Pure tensor mathematics."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from vitslim.graph.ops.fake_quant import MIN_SCALE

CANDIDATES = 100
"""Number of ranges that a search tries."""

SMALLEST_CANDIDATE = 0.2
"""Smallest fraction of the min-max range that a search tries."""

FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
"""Fractions of the range of a group, on either side of zero, that `group_range` tries."""


def minmax_scale(peak: Tensor, top: int) -> Tensor:
    """Return the scale that represents magnitudes up to `peak` without clipping: `peak / top`.

    peak: float, not negative, any shape. top: largest integer, 127 for 8 bits. The scale of a peak of zero is 1.
    """
    return torch.where(peak > 0, (peak / top).clamp(min=MIN_SCALE), torch.ones_like(peak))


def mse_scale(values: Tensor, limits: tuple[int, int], candidates: int = CANDIDATES) -> Tensor:
    """Return for each row the scale with the least squared error of `clamp(round(v / s), *limits) * s`.

    values: float (rows, n). limits: smallest and largest integer. Returns (rows,). The candidates are evenly spaced
    from SMALLEST_CANDIDATE of the min-max scale up to all of it; of equal errors the larger scale wins. The error
    includes clipped values, so outliers that matter keep the range wide.
    """
    widest = minmax_scale(values.abs().amax(dim=1), limits[1])
    best_scale, best_error = widest, torch.full_like(widest, torch.inf)
    for fraction in torch.linspace(1.0, SMALLEST_CANDIDATE, candidates).tolist():
        scale = (widest * fraction).clamp(min=MIN_SCALE)
        integers = (values / scale[:, None]).round_().clamp_(*limits)
        error = integers.mul_(scale[:, None]).sub_(values).square_().sum(dim=1)
        better = error < best_error
        best_scale, best_error = torch.where(better, scale, best_scale), torch.where(better, error, best_error)
    return best_scale


def weight_scale(weight: Tensor, limits: tuple[int, int], group_size: int = 0) -> Tensor:
    """Return the scales of a weight (out, ...) with the least squared error: (out,), or (out, in / group_size)."""
    values = weight.detach().flatten(start_dim=1)
    if not group_size:
        return mse_scale(values, limits)
    return mse_scale(values.reshape(-1, group_size), limits).reshape(len(values), -1)


def group_range(weight: Tensor, limits: tuple[int, int], group_size: int) -> tuple[Tensor, Tensor]:
    """Return scales and zero points of the groups of a weight (out, in): (out, in / group_size) each.

    Both ends of the range of a group are reduced by one of FRACTIONS; the pair with the least squared error wins. The
    zero point is an integer within the limits, so that zeros stay zeros.
    """
    values = weight.detach().reshape(-1, group_size)
    low, high = values.amin(dim=1).clamp(max=0), values.amax(dim=1).clamp(min=0)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    least = torch.full_like(low, torch.inf)
    for below, above in product(FRACTIONS, FRACTIONS):
        scale = ((above * high - below * low) / (limits[1] - limits[0])).clamp(min=MIN_SCALE)
        zero = (limits[0] - below * low / scale).round().clamp(*limits)
        integers = (values / scale[:, None]).round_().add_(zero[:, None]).clamp_(*limits)
        error = integers.sub_(zero[:, None]).mul_(scale[:, None]).sub_(values).square_().sum(dim=1)
        better = error < least
        least = torch.where(better, error, least)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale.reshape(len(weight), -1), best_zero.reshape(len(weight), -1)
