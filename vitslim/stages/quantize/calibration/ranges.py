"""Scales and zero points from observed values: min-max, least squared error, least entropy.

Percentile clipping is left out on purpose: it costs DeiT-Tiny 6 points of top-1, because its outliers matter
(specs, ONNX lowering, section 2).
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from vitslim.graph.ops.fake_quant import MIN_SCALE
from vitslim.units import PAIR_LIMIT

BINS = 8192
"""Histogram bins on either side of zero: at least 16 to each code, even when the range has just doubled."""

CANDIDATES = 100
"""Ranges tried by the searches."""

SMALLEST_CANDIDATE = 0.2
"""The searches go from this fraction of the min-max range up to the whole: smaller ones clip outliers away."""

SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
"""Fractions of a block's range, on either side of zero, that are tried."""

WORTH_A_ZERO_POINT = 0.9
"""A zero point is used where it makes the step smaller than this fraction of the step without."""

NO_PAIR_LIMIT = 254
"""What two codes of 8 bits add up to."""

SMOOTHING = 1e-12
"""Added to probabilities before their logarithm is taken."""


class Range(NamedTuple):
    """How values become codes: `round(x / scale) + zero_point`."""

    scale: float
    zero_point: int | None
    """None for signed codes about zero."""


def minmax_scale(peak: Tensor, top: int) -> Tensor:
    """The scale that represents magnitudes up to `peak` without clipping: `peak / top`.

    peak: float, not negative, any shape. top: largest code, 127 for 8 bits. Where only zeros were seen the scale is 1.
    """
    return torch.where(peak > 0, (peak / top).clamp(min=MIN_SCALE), torch.ones_like(peak))


def mse_scale(values: Tensor, limits: tuple[int, int], candidates: int = CANDIDATES) -> Tensor:
    """For each row the scale with the least squared error of `clamp(round(v / s), *limits) * s`.

    values: float (rows, n). limits: smallest and largest code. Returns (rows,). The grid has `candidates` scales,
    evenly spaced from SMALLEST_CANDIDATE of the min-max scale up to it; of equal errors the larger scale wins. Scales
    that would cut off values are judged by the whole error, so outliers that matter keep the range wide.
    """
    widest = minmax_scale(values.abs().amax(dim=1), limits[1])
    best_scale, best_error = widest, torch.full_like(widest, torch.inf)
    for fraction in torch.linspace(1.0, SMALLEST_CANDIDATE, candidates).tolist():
        scale = (widest * fraction).clamp(min=MIN_SCALE)
        codes = torch.round(values / scale[:, None]).clamp(*limits)
        error = (codes * scale[:, None] - values).square().sum(dim=1)
        better = error < best_error
        best_scale, best_error = torch.where(better, scale, best_scale), torch.where(better, error, best_error)
    return best_scale


def weight_scale(weight: Tensor, limits: tuple[int, int], block: int = 0) -> Tensor:
    """The scales of a weight (out, ...) with the least squared error: (out,), or (out, in / block) with a block."""
    values = weight.detach().flatten(start_dim=1)
    if not block:
        return mse_scale(values, limits)
    return mse_scale(values.reshape(-1, block), limits).reshape(len(values), -1)


def block_range(weight: Tensor, limits: tuple[int, int], block: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points of blocks of a weight (out, in) with the least squared error: (out, in / block) each.

    Both ends of what a block holds are drawn in, each by one of SHRUNK; the zero point is a whole number within the
    limits, so that zeros stay zeros.
    """
    values = weight.detach().reshape(-1, block)
    low, high = values.amin(dim=1).clamp(max=0), values.amax(dim=1).clamp(min=0)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    least = torch.full_like(low, torch.inf)
    for below, above in product(SHRUNK, SHRUNK):
        scale = ((above * high - below * low) / (limits[1] - limits[0])).clamp(min=MIN_SCALE)
        zero = (limits[0] - below * low / scale).round().clamp(*limits)
        codes = (values / scale[:, None]).round_().add_(zero[:, None]).clamp_(*limits)
        error = codes.sub_(zero[:, None]).mul_(scale[:, None]).sub_(values).square_().sum(dim=1)
        better = error < least
        least = torch.where(better, error, least)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale.reshape(len(weight), -1), best_zero.reshape(len(weight), -1)


def pair_safe_scale(weight: Tensor, scale: Tensor, limit: int = PAIR_LIMIT) -> Tensor:
    """The scales (out,) of a weight (out, ...), raised where two neighbors along the reduction would exceed a limit.

    PAIR_LIMIT widens the steps of weights like those of DeiT-Tiny in a random basis by 1.3; weights of 7 bits would
    double them.
    """
    flat = weight.detach().flatten(start_dim=1)
    if flat.shape[1] % 2:
        flat = torch.nn.functional.pad(flat, (0, 1))
    pairs = flat.reshape(len(flat), -1, 2)
    reach = torch.maximum(pairs.clamp(min=0).sum(dim=2), -pairs.clamp(max=0).sum(dim=2)).amax(dim=1)
    # Rounding adds up to half a code to either weight.
    return torch.maximum(scale, reach / (limit - 1))


def limit_pairs(codes: Tensor, limit: int = PAIR_LIMIT) -> Tensor:
    """Codes (out, ...) in which no pair breaks a limit: the larger of the two gives way, by a code or a few."""
    flat = codes.flatten(start_dim=1)
    padded = torch.nn.functional.pad(flat, (0, flat.shape[1] % 2))
    first, second = padded.reshape(len(flat), -1, 2).unbind(dim=2)
    total = torch.where(first.sign() == second.sign(), first.abs() + second.abs(), 0)
    excess = (total - limit).clamp(min=0)
    larger = first.abs() >= second.abs()
    limited = torch.stack(
        (first - first.sign() * excess * larger, second - second.sign() * excess * ~larger), dim=2
    )  # fmt: skip
    return limited.reshape(len(flat), -1)[:, : flat.shape[1]].reshape(codes.shape)


class Histogram:
    """How often each value occurs, collected batch by batch in constant memory.

    The range doubles when a larger magnitude comes, so one pass over the images is enough.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * BINS, dtype=torch.float64)
        self.range = 0.0
        """The bins go from -range to range."""
        self.low = self.high = 0.0

    def observe(self, values: Tensor) -> None:
        """Add a float tensor of any shape; values must be finite."""
        low, high = (float(value) for value in torch.aminmax(values.detach()))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(abs(low), abs(high)))
        if self.range == 0.0:
            self.counts[BINS] += values.numel()
            return
        self.counts += torch.histc(values.detach().float(), bins=2 * BINS, min=-self.range, max=self.range)

    def _widen(self, peak: float) -> None:
        if self.range == 0.0 and peak > 0.0:
            self.range = peak
        while self.range < peak:
            merged = self.counts.view(-1, 2).sum(dim=1)
            none = torch.zeros(BINS // 2, dtype=torch.float64)
            self.counts = torch.cat([none, merged, none])
            self.range *= 2.0

    def find_range(self, bits: int, method: str, symmetric: bool = False) -> Range:
        """The range of what was observed, for signed codes or, where that is worth it, unsigned ones.

        `method` is `minmax`, `mse` or `entropy`.
        """
        top = 2 ** (bits - 1) - 1
        peak = max(-self.low, self.high)
        if peak == 0.0:
            return Range(1.0, None)
        step = (self.high - self.low) / (2**bits - 1)
        signed = symmetric or step >= WORTH_A_ZERO_POINT * peak / top
        factor = 1.0 if method == "minmax" else self._best_factor(bits, method, signed)
        if signed:
            return Range(max(factor * peak / top, MIN_SCALE), None)
        scale = max(factor * step, MIN_SCALE)
        return Range(scale, round(-factor * self.low / scale))

    def _best_factor(self, bits: int, method: str, signed: bool) -> float:
        """By how much the range shrinks: the candidate of least loss, of equal ones the largest."""
        values = ((torch.arange(2 * BINS, dtype=torch.float64) + 0.5) / BINS - 1) * self.range
        values, counts = values.clamp(self.low, self.high)[self.counts > 0], self.counts[self.counts > 0]
        loss = squared_loss if method == "mse" else divergence
        peak, top = max(-self.low, self.high), 2 ** (bits - 1) - 1
        best, least = 1.0, float("inf")
        for factor in torch.linspace(1.0, SMALLEST_CANDIDATE, CANDIDATES).tolist():
            if signed:
                scale, lowest, highest = factor * peak / top, -top - 1, top
            else:
                scale = factor * (self.high - self.low) / (2**bits - 1)
                lowest = round(factor * self.low / scale)
                highest = lowest + 2**bits - 1
            codes = torch.round(values / scale).clamp(lowest, highest)
            found = loss(values, counts, codes, scale)
            if found < least:
                best, least = factor, found
        return best


def squared_loss(values: Tensor, counts: Tensor, codes: Tensor, scale: float) -> float:
    """Sum of squared errors of values (n,) that occur `counts` times when they become `codes * scale`."""
    return float(((codes * scale - values).square() * counts).sum())


def divergence(values: Tensor, counts: Tensor, codes: Tensor, scale: float) -> float:  # noqa: ARG001 - a loss
    """Kullback-Leibler divergence, in nats, of the values' distribution from what their codes keep of it.

    Values of one code are taken for equally frequent, as in TensorRT's entropy calibration.
    """
    p = counts / counts.sum()
    _, where = torch.unique(codes, return_inverse=True)
    mass = torch.zeros(int(where.max()) + 1, dtype=p.dtype).index_add_(0, where, p)
    q = mass[where] / torch.bincount(where)[where]
    return float((p * ((p + SMOOTHING) / (q + SMOOTHING)).log()).sum())
