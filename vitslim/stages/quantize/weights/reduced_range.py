"""Weights whose adjacent products fit into 16 bits: `reduce_range`. Pure tensor mathematics.

Processors without VNNI multiply unsigned 8-bit activations by signed 8-bit weights and add two adjacent products in 16
bits, with saturation. The sum fits if the two weights have a sum of at most PAIR_LIMIT.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.units import PAIR_LIMIT


def reduced_range_scale(weight: Tensor, scale: Tensor, limit: int = PAIR_LIMIT) -> Tensor:
    """Return the scales (out,) of a weight (out, ...), raised where the sum of two adjacent weights exceeds `limit`.

    A limit on the sum costs less than weights of 7 bits: it raises few scales, and those by less than two.
    """
    flat = weight.detach().flatten(start_dim=1)
    if flat.shape[1] % 2:
        flat = torch.nn.functional.pad(flat, (0, 1))
    pairs = flat.reshape(len(flat), -1, 2)
    largest = torch.maximum(pairs.clamp(min=0).sum(dim=2), -pairs.clamp(max=0).sum(dim=2)).amax(dim=1)
    # Rounding adds up to one half to either of the two integers.
    return torch.maximum(scale, largest / (limit - 1))


def limit_adjacent_sums(integers: Tensor, limit: int = PAIR_LIMIT) -> Tensor:
    """Return integer weights (out, ...) without adjacent sums above `limit`: the larger of the two is reduced."""
    flat = integers.flatten(start_dim=1)
    padded = torch.nn.functional.pad(flat, (0, flat.shape[1] % 2))
    first, second = padded.reshape(len(flat), -1, 2).unbind(dim=2)
    total = torch.where(first.sign() == second.sign(), first.abs() + second.abs(), 0)
    excess = (total - limit).clamp(min=0)
    larger = first.abs() >= second.abs()
    limited = torch.stack(
        (first - first.sign() * excess * larger, second - second.sign() * excess * ~larger), dim=2
    )  # fmt: skip
    return limited.reshape(len(flat), -1)[:, : flat.shape[1]].reshape(integers.shape)
