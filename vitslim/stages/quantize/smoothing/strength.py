"""Choose the smoothing strength of each layer by cross-validation. Pure tensor mathematics.

Ranges come from one half of the calibration images; the other half measures the quantization error that each strength
would cause. Stronger smoothing lowers the scale of an activation, but clips channels that the calibration images rarely
activate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.stages.quantize.smoothing.tokens import unit_squares
from vitslim.training.engine.collectives import sum_over_ranks

STRENGTHS = (None, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Candidates. A channel of range r is divided by (r / median r) ** strength; None leaves the activation unchanged."""

SMALLEST_HALF = 0.25
"""Smallest share of the images that a half may have."""


@dataclass(frozen=True)
class SmoothedRange:
    """Shift and factor of one strength, and the range and scale of the quantizer after it. All float (channels,)."""

    shift: Tensor
    factor: Tensor
    """The quantizer reads `(x - shift) / factor`."""
    low: Tensor
    high: Tensor
    """Smallest and largest x that the quantizer represents."""
    scale: Tensor
    """Distance between two quantized values of x."""


def smoothed_range(
    limits: tuple[Tensor, Tensor], shift: Tensor, factor: Tensor, bits: int, symmetric: bool = False
) -> SmoothedRange:
    """Return the range of `(x - shift) / factor` for x between `limits`, float (channels,) each.

    All channels share one scale. `symmetric`: the range reaches equally far on either side of zero.
    """
    low, high = (((limit - shift) / factor) for limit in limits)
    bottom, top = low.amin(), high.amax()
    if symmetric:
        top = torch.maximum(top, -bottom)
        bottom = -top
    scale = (top - bottom) / (2**bits - 1)
    return SmoothedRange(shift, factor, bottom * factor + shift, top * factor + shift, scale * factor)


def split_by_class(predictions: Tensor) -> Tensor:
    """Return a half of the images, bool (n,), that shares no predicted class with the other half.

    predictions: int (n,), at least one. Every second image if the classes cannot be divided into two halves of at least
    SMALLEST_HALF, as with a single class.
    """
    classes, counts = torch.unique(predictions, return_counts=True)
    order = counts.argsort(descending=True, stable=True).tolist()
    sizes, chosen = [0, 0], []
    for index in order:
        smaller = int(sizes[1] < sizes[0])
        sizes[smaller] += int(counts[index])
        if smaller == 0:
            chosen.append(index)
    if min(sizes) < SMALLEST_HALF * len(predictions):
        return torch.arange(len(predictions)) % 2 == 0
    return torch.isin(predictions, classes[chosen])


class HeldOutLoss:
    """Quantization error of several candidates for one activation, on rows that their ranges do not come from."""

    def __init__(self, limits: tuple[Tensor, Tensor], candidates: Sequence[SmoothedRange]) -> None:
        """`limits`: the observed range, float (channels,) each, which every candidate covers."""
        self._limits, self._candidates = limits, candidates
        self._clipped = torch.zeros(len(candidates), dtype=torch.float64)
        self._weights = torch.zeros(len(limits[0]), dtype=torch.float64)
        self._center = (limits[0] + limits[1]) / 2
        """Sums are those of activations minus this, which changes no variance but that of rounding errors."""
        self._rows = torch.zeros((), dtype=torch.float64)
        self._sum, self._squares = torch.zeros_like(self._weights), torch.zeros_like(self._weights)

    def observe(self, x: Tensor, gradient: Tensor) -> None:
        """Add activations and the gradient of a random combination of the logits, float (..., channels) each.

        Raises StageError if the gradient is not finite.
        """
        x = x.flatten(end_dim=-2)
        squares, unit = unit_squares(gradient.flatten(end_dim=-2))
        rows = squares.sum(dim=1)
        self._weights += squares.sum(dim=0).double() * unit
        moved = x - self._center
        peak = moved.abs().amax().clamp(min=torch.finfo(x.dtype).tiny)
        moved, size = moved.div_(peak), peak.double()
        self._rows = self._rows + rows.sum().double() * unit
        self._sum = self._sum + (rows @ moved).double() * unit * size
        self._squares = self._squares + (rows @ moved.square_()).double() * unit * size.square()
        self._add_clipped(x, squares, unit)

    def _add_clipped(self, x: Tensor, squares: Tensor, unit: Tensor) -> None:
        """Add the error of the values outside the limits, which few channels have."""
        low, high = self._limits
        channels = torch.nonzero((x.amin(dim=0) < low) | (x.amax(dim=0) > high)).flatten()
        if not len(channels):
            return
        x, squares = x[:, channels], squares[:, channels]
        outside = (x < low[channels]) | (x > high[channels])
        values, weights, found = x[outside], squares[outside].double() * unit, channels[outside.nonzero()[:, 1]]
        for index, one in enumerate(self._candidates):
            over = (values - one.high[found]).clamp(min=0) + (one.low[found] - values).clamp(min=0)
            self._clipped[index] += over.double().square() @ weights

    def merge(self) -> None:
        """Add the rows that the other ranks observed; all ranks call it."""
        self._clipped, self._weights = sum_over_ranks(self._clipped), sum_over_ranks(self._weights)
        self._rows, self._sum = sum_over_ranks(self._rows), sum_over_ranks(self._sum)
        self._squares = sum_over_ranks(self._squares)

    def losses(self, weight: Tensor, top: int, clips: bool = True) -> Tensor:
        """Return the squared error of the logits that each candidate causes, summed over rows, float64 (candidates,).

        The sum of the rounding error of activations, uniform within a scale; of clipped activations, if `clips`; and of
        the rounding error of the weights (out, channels) of the layers that read them, whose largest integer is `top`.
        """
        matrix = weight.double()
        mean = self._sum / self._rows.clamp(min=torch.finfo(torch.float64).tiny)
        power = (self._squares - mean * self._sum).clamp(min=0) / matrix.square().sum().clamp(min=1e-30)
        found = self._clipped.clone() if clips else torch.zeros_like(self._clipped)
        for index, one in enumerate(self._candidates):
            activations = self._weights @ one.scale.double().square()
            scales = (matrix * one.factor).abs().amax(dim=1) / top
            weights = scales.square().sum() * (power / one.factor.double().square()).sum()
            found[index] += (activations + weights) / 12
        return found
