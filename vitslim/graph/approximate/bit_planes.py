"""Symmetric integers and their bit planes, with straight-through gradients for training."""

from __future__ import annotations

import torch
from torch import Tensor

INT8_MAX = 127
SMALLEST = 1e-12
"""Smallest scale, so that a tensor of zeros is divided by no zero."""


def symmetric_scale(x: Tensor, top: int, dims: tuple[int, ...], counted: Tensor | None = None) -> Tensor:
    """Return the scale with which the largest magnitude of `x` over `dims` becomes `top`; `dims` are kept as size 1.

    counted: bool that broadcasts to x; False leaves values out. Computed without gradients.
    """
    magnitude = x.detach().abs()
    if counted is not None:
        magnitude = magnitude * counted
    return (magnitude.amax(dims, keepdim=True) / top).clamp(min=SMALLEST)


def to_symmetric(x: Tensor, scale: Tensor, top: int) -> Tensor:
    """Return `clamp(round(x / scale), -top, top)`: integers as float, without gradients."""
    found = x.detach() / scale
    found.round_().clamp_(-top, top)  # in place: activations are large
    return found


def largest_integer(upper: int, low: int = 0) -> int:
    """Return the largest integer of an upper plane with `upper` bits and a signed lower plane with `low` bits."""
    return int((2 ** (upper - 1) - 1) * 2**low + (2 ** (low - 1) - 1 if low else 0))


def upper_plane(integers: Tensor, low: int) -> Tensor:
    """Return the nearest multiple of 2^low: the integers without their lower plane, which holds the signed remainder.

    The upper plane alone is therefore a symmetric quantization with fewer bits. Unchanged for `low` 0.
    """
    return integers if low == 0 else torch.floor(integers / (1 << low) + 0.5) * (1 << low)


def upper_magnitude(integers: Tensor, low: int) -> Tensor:
    """Return integers whose `low` lowest bits of the magnitude are zero, as in sign-magnitude numbers."""
    return torch.trunc(integers / (1 << low)) * (1 << low)


def straight_through(x: Tensor, approximate: Tensor) -> Tensor:
    """Return `approximate`; in training its gradient passes to `x` unchanged."""
    return x + (approximate - x).detach() if x.requires_grad else approximate
