"""Eager prediction of attention: products of leading ones, without multipliers.

Source: Qin et al., "FACT: FFN-Attention Co-optimized Transformer Architecture with Eager Correlation Prediction", ISCA
2023; details as third parties describe them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vitslim.graph.approximate.bit_planes import INT8_MAX, symmetric_scale, to_symmetric

MANTISSAS = math.log(2) ** -2
"""Mean of the product of two mantissas in [1, 2) with uniform logarithms, which leading ones drop. The predictor folds
it into its scales, so that biases and the margin of the one-hot rule are in units of the true logits."""
_EXPONENT = -(2**23)
"""Mask of sign and exponent of a float32."""


def leading_one(x: Tensor) -> Tensor:
    """Return `sgn(x) * 2^floor(log2 |x|)` of integers as float32, any shape; 0 for 0."""
    bits = x.float().contiguous().view(torch.int32)
    return torch.bitwise_and(bits, _EXPONENT).view(torch.float32)


def predicted_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a linear layer in which every product is that of the leading ones of two INT8 operands.

    x: (B, ..., C), one scale per image. weight: (out, C), one scale. Returns float32 (B, ..., out), without gradients.
    """
    with torch.no_grad():
        x_scale = symmetric_scale(x, INT8_MAX, tuple(range(1, x.dim())))
        w_scale = symmetric_scale(weight, INT8_MAX, (0, 1))
        ones = [leading_one(to_symmetric(one, scale, INT8_MAX)) for one, scale in ((x, x_scale), (weight, w_scale))]
        found = functional.linear(*ones).mul_(x_scale * w_scale.reshape(()) * MANTISSAS)
        return found if bias is None else found + bias


def predicted_logits(q: Tensor, k: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Return the predicted logits (B, H, n, m) of predicted queries (B, H, n, d) and keys (B, H, m, d).

    Both are quantized to INT8 with one scale per image, and multiplied by their leading ones. scale: of the attention.
    bias: added, broadcasts to the result.
    """
    with torch.no_grad():
        scales = [symmetric_scale(one, INT8_MAX, (1, 2, 3)) for one in (q, k)]
        ones = [leading_one(to_symmetric(one, s, INT8_MAX)) for one, s in zip((q, k), scales, strict=True)]
        found = torch.matmul(ones[0], ones[1].transpose(-2, -1)).mul_(scales[0] * scales[1] * (scale * MANTISSAS))
        return found if bias is None else found + bias
