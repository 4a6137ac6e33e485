"""Symmetric integers and their bit planes, with straight-through gradients for training."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-12
"""Smallest scale, so that a tensor of zeros is divided by no zero."""


def symmetric_scale(x: Tensor, bits: int, dims: tuple[int, ...], counted: Tensor | None = None) -> Tensor:
    """Return the scale of symmetric integers with the largest magnitude of `x` over `dims`, which are kept as size 1.

    counted: bool that broadcasts to x; False leaves values out. Computed without gradients.
    """
    magnitude = x.detach().abs()
    if counted is not None:
        magnitude = magnitude * counted
    return (magnitude.amax(dims, keepdim=True) / (2 ** (bits - 1) - 1)).clamp(min=SMALLEST)


def to_symmetric(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return `clamp(round(x / scale), -2^(bits-1)+1, 2^(bits-1)-1)`: integers as float, without gradients."""
    top = 2 ** (bits - 1) - 1
    return (x.detach() / scale).round_().clamp_(-top, top)


def upper_plane(integers: Tensor, low: int) -> Tensor:
    """Return integers whose `low` lowest bits in two's complement are zero; unchanged for 0."""
    return integers if low == 0 else torch.floor(integers / 2**low) * 2**low


def straight_through(x: Tensor, approximate: Tensor) -> Tensor:
    """Return `approximate`; in training its gradient passes to `x` unchanged."""
    return x + (approximate - x).detach() if x.requires_grad else approximate
