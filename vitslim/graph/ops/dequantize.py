"""The operator `vitslim::dequantize`: the float values of stored integer weights. Only export uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.graph.ops.fake_quant import expand_scale


@torch.library.custom_op("vitslim::dequantize", mutates_args=())
def dequantize(
    integers: Tensor, scale: Tensor, axis: int, group_size: int, zero_points: Tensor | None = None
) -> Tensor:
    """Return `(integers - zero_points) * scale` in the dtype of the scale.

    integers: int8 (out, ...). scale: float (out,) along `axis`, or (out, in / group_size). zero_points: int8, of the
    scale's shape.
    """
    x = integers.to(scale.dtype)
    if zero_points is not None:
        x = x - expand_scale(zero_points.to(scale.dtype), x, axis, group_size)
    return x * expand_scale(scale, x, axis, group_size)


@dequantize.register_fake
def _fake(
    integers: Tensor,
    scale: Tensor,
    axis: int,  # noqa: ARG001
    group_size: int,  # noqa: ARG001
    zero_points: Tensor | None = None,  # noqa: ARG001
) -> Tensor:
    return torch.empty_like(integers, dtype=scale.dtype)
