"""Rounding noise with one scale per token. Pure tensor mathematics.

An activation has one scale, which its largest value determines, so tokens of small values are rounded as coarsely as
the largest token. After division by its own largest magnitude, each token is rounded relative to its size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitslim.errors import StageError
from vitslim.training.engine.collectives import all_items, max_over_ranks


class Division(NamedTuple):
    """The best division of the tokens of an activation."""

    floor: float
    """Smallest divisor."""
    noise_ratio: float
    """Rounding noise over that without division."""


class TokenNoise:
    """Rounding noise that dividing the tokens of an activation leaves, on the observed rows."""

    def __init__(self, bounded_below: bool) -> None:
        """`bounded_below`: whether negative values are small, so that the largest value is the largest magnitude."""
        self._bounded = bounded_below
        self._low, self._high = torch.zeros(()), torch.zeros(())
        self._largest: list[Tensor] = []
        self._weights: list[Tensor] = []

    def observe(self, x: Tensor, gradient: Tensor) -> None:
        """Add activations and the gradient of a random combination of the logits, float (..., channels) each.

        Raises StageError if the gradient is not finite.
        """
        squares, unit = unit_squares(gradient.flatten(end_dim=-2))
        x, weights = x.flatten(end_dim=-2), squares.sum(dim=1).double() * unit
        self._low, self._high = torch.minimum(self._low, x.amin()), torch.maximum(self._high, x.amax())
        self._largest.append((x if self._bounded else x.abs()).amax(dim=1).double())
        self._weights.append(weights)

    def merge(self) -> None:
        """Add the rows that the other ranks observed; all ranks call it."""
        self._low, self._high = -max_over_ranks(-self._low), max_over_ranks(self._high)
        self._largest, self._weights = all_items(self._largest), all_items(self._weights)

    def best(self) -> Division | None:
        """Return the floor of the least noise, among the largest magnitudes of all rows; None if none is positive.

        A row of largest value r has the scale max(r, floor) * (1 + b), where -b is the smallest quotient that the
        quantizer must represent: -1, or -low / floor if values are bounded below. Its noise is the squared scale.
        """
        largest, order = torch.cat(self._largest).sort()
        weights = torch.cat(self._weights)[order]
        positive = largest > 0
        if not bool(positive.any()):
            return None
        large = (weights * largest.square()).flip(0).cumsum(0).flip(0)
        small = weights.cumsum(0) - weights
        floors = largest[positive]
        below = float(-self._low) / floors if self._bounded else torch.ones_like(floors)
        noise = (1 + below).square() * (floors.square() * small[positive] + large[positive])
        best = int(noise.argmin())
        undivided = (self._high - self._low).double().square() * weights.sum()
        return Division(float(floors[best]), float(noise[best] / undivided) if undivided > 0 else 1.0)


def unit_squares(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squares of gradients, of the same shape, in units of the largest of them, and that unit, float64 ().

    In models without normalization the squares themselves can overflow. Raises StageError if a gradient is not finite.
    """
    peak = gradients.abs().amax()
    if not bool(peak.isfinite()):
        hint = "`smooth: false` and `rounding: nearest` need no gradients"
        raise StageError("the gradient of an activation is not finite", hint)
    return (gradients / peak.clamp(min=torch.finfo(peak.dtype).tiny)).square_(), peak.double().square()
