"""How far channels are equalized: as far as rows allow that their ranges have not seen. Pure tensor mathematics.

Channels of one range waste no codes, and the stronger they are brought to it, the smaller is the step of them all. But
a channel that calibration images hardly excite is then cut off where an image of another class does. So ranges come
from one half of the images, and the other half says what each strength would have cost (cross-validation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.stages.quantize.smoothing.tokens import check_finite

STRENGTHS = (None, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""That are tried. A channel of range r is divided by (r / median r) ** strength; None leaves the inputs as they are."""

SMALLEST_HALF = 0.25
"""Share of the images below which a half says too little."""


@dataclass(frozen=True)
class Spread:
    """What one strength makes of an input, and what its codes then stand for. All float (channels,)."""

    shift: Tensor
    factor: Tensor
    """The layer reads `(x - shift) / factor`, up to what is folded behind."""
    low: Tensor
    high: Tensor
    """The smallest and the largest value that a code stands for, of x."""
    step: Tensor
    """Between two codes, of x."""


def spread(limits: tuple[Tensor, Tensor], shift: Tensor, factor: Tensor, bits: int, symmetric: bool = False) -> Spread:
    """The codes of `(x - shift) / factor`, whose smallest and largest values are those of `limits` (channels,) each.

    One step for all channels; with `symmetric` as many codes on either side of zero.
    """
    low, high = (((limit - shift) / factor) for limit in limits)
    bottom, top = low.amin(), high.amax()
    if symmetric:
        top = torch.maximum(top, -bottom)
        bottom = -top
    step = (top - bottom) / (2**bits - 1)
    return Spread(shift, factor, bottom * factor + shift, top * factor + shift, step * factor)


def halves(predictions: Tensor) -> Tensor:
    """A half of the images, bool (n,), that shares no predicted class with the other: int (n,), at least one.

    Every second image where classes cannot be divided so, as where there is but one.
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


class HeldOut:
    """What each of several spreads costs at one place, on rows that their ranges have not seen."""

    def __init__(self, limits: tuple[Tensor, Tensor], spreads: Sequence[Spread]) -> None:
        """`limits`: the range (channels,) each that is known, which every spread covers."""
        self._limits, self._spreads = limits, spreads
        self._cut = torch.zeros(len(spreads), dtype=torch.float64)
        self._matter = torch.zeros(len(limits[0]), dtype=torch.float64)
        self._rows, self._sum, self._squares = (torch.zeros((), dtype=torch.float64) for _ in range(3))

    def observe(self, x: Tensor, gradient: Tensor) -> None:
        """Add inputs and the gradient there of a random combination of the logits, float (..., channels) each.

        Raises StageError where a gradient is no finite number.
        """
        x, matter = x.flatten(end_dim=-2), gradient.flatten(end_dim=-2).double().square()
        check_finite(matter)
        rows = matter.sum(dim=1)
        self._matter += matter.sum(dim=0)
        self._rows = self._rows + rows.sum()
        self._sum = self._sum + rows @ x.double()
        self._squares = self._squares + rows @ x.double().square()
        beyond = (x < self._limits[0]) | (x > self._limits[1])
        values, weights, channels = x[beyond], matter[beyond], beyond.nonzero()[:, 1]
        for index, one in enumerate(self._spreads):
            over = (values - one.high[channels]).clamp(min=0) + (one.low[channels] - values).clamp(min=0)
            self._cut[index] += over.double().square() @ weights

    def losses(self, weight: Tensor, top: int, cut: bool = True) -> Tensor:
        """By how much each spread moves the logits, squared and summed over the rows, float64 (spreads,).

        That is the rounding of inputs, uniform within a step; what lies beyond the codes, with `cut`; and the rounding
        of the weights (out, channels) of the layers behind, whose largest code is `top`.
        """
        matrix = weight.double()
        mean = self._sum / self._rows.clamp(min=torch.finfo(torch.float64).tiny)
        power = (self._squares - mean * self._sum).clamp(min=0) / matrix.square().sum().clamp(min=1e-30)
        found = self._cut.clone() if cut else torch.zeros_like(self._cut)
        for index, one in enumerate(self._spreads):
            inputs = self._matter @ one.step.double().square()
            steps = (matrix * one.factor).abs().amax(dim=1) / top
            weights = steps.square().sum() * (power / one.factor.double().square()).sum()
            found[index] += (inputs + weights) / 12
        return found
