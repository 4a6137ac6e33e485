"""Group-wise integer weights whose group scales are integers (QServe, Lin et al., 2024).

A weight of at most 4 bits times its integer group scale is an INT8 value, so a file stores few bits for each weight and
the matmul stays an INT8 one, with one float scale for each output channel. Pure tensor mathematics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.graph.ops.fake_quant import weight_range

GROUP_SCALE_MAX = 15
"""Largest integer group scale: that of UINT4."""


def factor_group_scales(integers: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Factor INT8 weights into weights of fewer bits and the smallest possible integer scale of each group.

    integers: any integer or float type that holds the values of INT8, (out, in); `in` is a multiple of `group_size`.
    Returns the narrow weights (out, in / group_size, group_size) and the group scales (out, in / group_size, 1), both
    of the type of `integers`; their product gives the integers back. Raises ValueError if a group has no such scale.
    """
    groups = integers.detach().reshape(len(integers), -1, group_size)
    low, high = weight_range(bits, group_size)
    scales = torch.zeros_like(groups[..., :1])
    for scale in range(GROUP_SCALE_MAX, 0, -1):
        narrow = groups // scale
        fits = (narrow * scale == groups) & (narrow >= low) & (narrow <= high)
        scales[fits.all(dim=2)] = scale
    if not bool(scales.all()):
        raise ValueError(f"its integers are not integer multiples of {bits}-bit weights in groups of {group_size}")
    return groups // scales, scales
