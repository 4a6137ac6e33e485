"""Elementwise mathematics of large activations: in parts that stay in the cache of a processor, and without bool masks.

In PyTorch on a CPU, comparisons and products with bool tensors take 5 to 30 times as long as arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

PART = 2**18
"""Elements that are computed at a time on a CPU."""


def in_parts(*tensors: Tensor, whole: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of tensors of one shape: the same rows of their first dimension, about PART elements at a time.

    whole: yield the tensors as they are, as on other devices than the CPU.
    """
    first = tensors[0]
    if whole or first.device.type != "cpu" or first.numel() <= PART:
        yield tensors
        return
    rows = max(1, PART * len(first) // first.numel())
    yield from zip(*(torch.split(one, rows) for one in tensors), strict=True)


def widened(x: Tensor) -> Tensor:
    """Return x in float32 if it is bfloat16 or float16, else x itself."""
    return x.float() if x.dtype in {torch.bfloat16, torch.float16} else x


def where_inside(x: Tensor, position: Tensor, low: float, high: float) -> Tensor:
    """Return x where `low < position < high`, else zero. x, position: float of one shape and dtype."""
    found: Tensor = torch.ops.aten.hardtanh_backward(x, position, low, high)
    return found


def just_outside(low: int, high: int) -> tuple[float, float]:
    """Return the float32 numbers next to a range, outside it, so that `where_inside` includes the ends."""
    limits = torch.tensor([low, high], dtype=torch.float32)
    below, above = torch.nextafter(limits, torch.tensor([-math.inf, math.inf])).tolist()
    return below, above
