"""Ranges of activations from the extremes, or from a histogram, of the observed values.

Percentile clipping is not offered: transformers have rare activations of large magnitude that the outputs depend on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitslim.errors import StageError
from vitslim.graph.ops.elementwise import in_parts
from vitslim.graph.ops.fake_quant import MIN_SCALE
from vitslim.stages.quantize.weights.weight_scales import CANDIDATES, SMALLEST_CANDIDATE
from vitslim.training.engine.collectives import max_over_ranks, sum_over_ranks

BINS = 8192
"""Histogram bins on either side of zero: at least 16 for each integer, even after the range has doubled."""

WORTH_A_ZERO_POINT = 0.9
"""A zero point is used if it reduces the scale to less than this fraction of the symmetric scale."""


class Range(NamedTuple):
    """Quantization of an activation: `round(x / scale) + zero_point`."""

    scale: float
    zero_point: int | None
    """None for signed integers about zero."""


class Extremes:
    """Smallest and largest observed value, and zero."""

    def __init__(self, low: float = 0.0, high: float = 0.0) -> None:
        self.low, self.high = min(low, 0.0), max(high, 0.0)

    def observe(self, values: Tensor) -> None:
        """Add a float tensor of any shape; values must be finite."""
        low, high = (float(value) for value in torch.aminmax(values.detach()))
        self.low, self.high = min(self.low, low), max(self.high, high)

    def forget(self) -> None:
        """Keep everything: there is only a minimum and a maximum."""

    def merge(self) -> None:
        """Add the values that the other ranks observed; all ranks call it."""
        low, high = max_over_ranks(torch.tensor([-self.low, self.high], dtype=torch.float64)).tolist()
        self.low, self.high = -low, high

    def find_range(self, bits: int, symmetric: bool = False) -> Range:
        """Return the range of the observed values: signed, or unsigned with a zero point if that is narrower."""
        top = 2 ** (bits - 1) - 1
        peak = max(-self.low, self.high)
        if peak == 0.0:
            return Range(1.0, None)
        scale = (self.high - self.low) / (2**bits - 1)
        signed = symmetric or scale >= WORTH_A_ZERO_POINT * peak / top
        factor = self._factor(bits, signed)
        if signed:
            return Range(max(factor * peak / top, MIN_SCALE), None)
        scale = max(factor * scale, MIN_SCALE)
        return Range(scale, round(-factor * self.low / scale))

    def _factor(self, bits: int, signed: bool) -> float:  # noqa: ARG002 - histograms use both
        """Return the fraction of the range to represent."""
        return 1.0


class Histogram(Extremes):
    """Counts of observed values, collected batch by batch in constant memory; the range has the least squared error.

    The range doubles when a larger magnitude arrives, so one pass over the images is enough.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = torch.zeros(2 * BINS, dtype=torch.float64)
        self.range = 0.0
        """The bins cover -range to range."""

    def observe(self, values: Tensor) -> None:
        """Add a float tensor of any shape; values must be finite."""
        super().observe(values)
        self._widen(max(-self.low, self.high))
        if self.range == 0.0:
            self.counts[BINS] += values.numel()
            return
        # `torch.histc` takes three times as long.
        for (part,) in in_parts(values.detach()):
            places = (part.float() / self.range).mul_(BINS).add_(BINS).clamp_(0, 2 * BINS - 1)
            self.counts += torch.bincount(places.int().reshape(-1), minlength=2 * BINS)

    def forget(self) -> None:
        """Forget the counts; the bins and the smallest and largest value stay."""
        self.counts.zero_()

    def merge(self) -> None:
        """Add the counts of the other ranks, whose bins began with the same range; all ranks call it.

        Raises StageError if the first batch was zero, which gives the bins no common range.
        """
        widest = float(max_over_ranks(torch.tensor(self.range, dtype=torch.float64)))
        self._widen(widest)
        limits = torch.tensor([self.range, -self.low, self.high], dtype=torch.float64)
        largest, low, high = max_over_ranks(limits).tolist()
        if largest != widest:
            message = "an activation is zero on the first calibration images, so ranks cannot share its calibration"
            raise StageError(message, "run this stage with one rank; further stages may use several")
        self.low, self.high = -low, high
        self.counts = sum_over_ranks(self.counts)

    def _widen(self, peak: float) -> None:
        if self.range == 0.0 and peak > 0.0:
            self.range = peak
        while self.range < peak:
            merged = self.counts.view(-1, 2).sum(dim=1)
            none = torch.zeros(BINS // 2, dtype=torch.float64)
            self.counts = torch.cat([none, merged, none])
            self.range *= 2.0

    def _factor(self, bits: int, signed: bool) -> float:
        """Return the fraction of the range with the least squared error; of equal errors the largest fraction."""
        values = ((torch.arange(2 * BINS, dtype=torch.float64) + 0.5) / BINS - 1) * self.range
        values, counts = values.clamp(self.low, self.high)[self.counts > 0], self.counts[self.counts > 0]
        peak, top = max(-self.low, self.high), 2 ** (bits - 1) - 1
        best, least = 1.0, float("inf")
        for factor in torch.linspace(1.0, SMALLEST_CANDIDATE, CANDIDATES).tolist():
            if signed:
                scale, lowest, highest = factor * peak / top, -top - 1, top
            else:
                scale = factor * (self.high - self.low) / (2**bits - 1)
                lowest = round(factor * self.low / scale)
                highest = lowest + 2**bits - 1
            integers = torch.round(values / scale).clamp(lowest, highest)
            error = float(((integers * scale - values).square() * counts).sum())
            if error < least:
                best, least = factor, error
        return best


def range_statistic(method: str) -> Extremes:
    """Return an empty statistic: of the extremes for `minmax`, a histogram for `mse`."""
    return Histogram() if method == "mse" else Extremes()
