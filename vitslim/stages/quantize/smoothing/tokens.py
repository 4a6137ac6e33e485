"""What a step of its own for each token would save. Pure tensor mathematics.

The inputs of a layer share one step, which their largest value decides: a token whose values are all small is rounded
as coarsely as the largest. Divided by its own largest magnitude first, each is rounded as finely as it needs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitslim.errors import StageError


class Division(NamedTuple):
    """How the tokens of an input are best divided."""

    floor: float
    """The least divisor."""
    left: float
    """Noise of rounding over what it is undivided."""


class TokenNoise:
    """What dividing the tokens at one place leaves of the noise of rounding, on the rows that it has seen."""

    def __init__(self, bounded_below: bool) -> None:
        """`bounded_below`: whether negative values are all small: then the largest value is the largest magnitude."""
        self._bounded = bounded_below
        self._low, self._high = torch.zeros(()), torch.zeros(())
        self._largest: list[Tensor] = []
        self._matter: list[Tensor] = []

    def observe(self, x: Tensor, gradient: Tensor) -> None:
        """Add inputs and the gradient there of a random combination of the logits, float (..., channels) each.

        Raises StageError where a gradient is no finite number.
        """
        x, matter = x.flatten(end_dim=-2), gradient.flatten(end_dim=-2).double().square().sum(dim=1)
        check_finite(matter)
        self._low, self._high = torch.minimum(self._low, x.amin()), torch.maximum(self._high, x.amax())
        self._largest.append((x if self._bounded else x.abs()).amax(dim=1).double())
        self._matter.append(matter)

    def best(self) -> Division | None:
        """The floor that costs least, among the largest magnitudes of all rows; None where they are nowhere positive.

        A row of largest value r is rounded in steps of max(r, floor) * (1 + b), where -b is the smallest quotient that
        codes must hold: -1, or -low / floor where values are bounded below. The noise is the square of the step.
        """
        largest, order = torch.cat(self._largest).sort()
        matter = torch.cat(self._matter)[order]
        positive = largest > 0
        if not bool(positive.any()):
            return None
        large = (matter * largest.square()).flip(0).cumsum(0).flip(0)
        small = matter.cumsum(0) - matter
        floors = largest[positive]
        below = float(-self._low) / floors if self._bounded else torch.ones_like(floors)
        cost = (1 + below).square() * (floors.square() * small[positive] + large[positive])
        cheapest = int(cost.argmin())
        plain = (self._high - self._low).double().square() * matter.sum()
        return Division(float(floors[cheapest]), float(cost[cheapest] / plain) if plain > 0 else 1.0)


def check_finite(gradients: Tensor) -> None:
    """Raises StageError where a gradient is no finite number."""
    if not bool(gradients.isfinite().all()):
        hint = "`equalize: false` and `rounding: nearest` ask for no gradients"
        raise StageError("the gradient at an input is no finite number", hint)
