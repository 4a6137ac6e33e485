"""The operator `vitslim::dequantize`: stored integers as the weights that they stand for. Export alone uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.graph.ops.fake_quant import spread_scale


@torch.library.custom_op("vitslim::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, axis: int, block: int, zeros: Tensor | None = None) -> Tensor:
    """`(codes - zeros) * scale` in the type of the scale.

    codes: int8 (out, ...). scale: float (out,) along `axis`, or with a block (out, in / block). zeros: int8, like it.
    """
    x = codes.to(scale.dtype)
    if zeros is not None:
        x = x - spread_scale(zeros.to(scale.dtype), x, axis, block)
    return x * spread_scale(scale, x, axis, block)


@dequantize.register_fake
def _fake(codes: Tensor, scale: Tensor, axis: int, block: int, zeros: Tensor | None = None) -> Tensor:  # noqa: ARG001
    return torch.empty_like(codes, dtype=scale.dtype)
