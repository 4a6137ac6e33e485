"""The operator `vitslim::fake_quant_float8`: round to 8-bit floats and back. It is one node of a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.graph.ops.fake_quant import expand_scale

FLOAT8 = torch.float8_e4m3fn
"""Four bits of exponent and three of mantissa, without infinities (OCP 8-bit floating point specification, E4M3)."""
FLOAT8_MAX = float(torch.finfo(FLOAT8).max)
"""448."""


def to_float8(x: Tensor, scale: Tensor, axis: int | None) -> Tensor:
    """Return `x / scale` as 8-bit floats, rounded to nearest; values above FLOAT8_MAX saturate.

    scale: float, positive, shape () for `axis` None, else (x.shape[axis],).
    """
    return (x / expand_scale(scale, x, axis)).clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8)


@torch.library.custom_op("vitslim::fake_quant_float8", mutates_args=())
def fake_quant_float8(x: Tensor, scale: Tensor, axis: int | None) -> Tensor:
    """Return the values of `x` after quantization to 8-bit floats; same shape and dtype as `x`. See `to_float8`."""
    return to_float8(x, scale, axis).to(x.dtype).mul_(expand_scale(scale, x, axis))


@fake_quant_float8.register_fake
def _fake(x: Tensor, scale: Tensor, axis: int | None) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


FAKE_QUANT_FLOAT8 = torch.ops.vitslim.fake_quant_float8.default
