"""Rounding of weights that makes up for its own errors (GPTQ, Frantar et al., ICLR 2023). Pure tensor mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.stages.layerwise import damped

COLUMNS_AT_ONCE = 128
"""Later columns see the errors of so many at a time (GPTQ, section 3.3, lazy batch updates)."""


def gptq(weight: Tensor, scale: Tensor, gram: Tensor, top: int, block: int = 0) -> Tensor:
    """Values `codes * scale` of a weight, each column rounded after the errors of those before it were spread on it.

    weight: float (out, in). scale: (out,), or (out, in / block). gram: (in, in), the sum of x x^T over calibration
    inputs, which is the Hessian of every output's squared error. Codes lie in [-top, top]. Columns go in the order of
    falling diagonal, the most used first. Zeros of the weight stay zeros. Returns float32 (out, in).
    Source: GPTQ, sections 3.1 to 3.3.
    """
    inverse, order = _inverse_factor(gram)
    left = weight.double()[:, order].clone()
    stays = weight[:, order] != 0
    steps = _column_scales(scale.double(), weight.shape[1], block)[:, order]
    done = torch.empty_like(left)
    for start in range(0, left.shape[1], COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, left.shape[1])
        errors = torch.empty_like(left[:, start:stop])
        for column in range(start, stop):
            step = steps[:, column]
            codes = torch.round(left[:, column] / step).clamp(-top, top)
            done[:, column] = torch.where(stays[:, column], codes * step, 0.0)
            error = (left[:, column] - done[:, column]) / inverse[column, column]
            left[:, column + 1 : stop] -= error[:, None] * inverse[column, column + 1 : stop]
            errors[:, column - start] = error
        left[:, stop:] -= errors @ inverse[start:stop, stop:]
    result = torch.empty_like(done)
    result[:, order] = done
    return result.float()


def _inverse_factor(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Upper Cholesky factor of the inverse of the damped Hessian, rows and columns in the order they are rounded."""
    hessian = damped(gram)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    hessian = hessian[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True), order


def _column_scales(scale: Tensor, columns: int, block: int) -> Tensor:
    """The scale of every weight: (out, in)."""
    if not block:
        return scale[:, None].expand(-1, columns)
    return scale.repeat_interleave(block, dim=1)
