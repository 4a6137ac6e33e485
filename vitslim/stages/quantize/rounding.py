"""Rounding of weights that makes up for its own errors. Pure tensor mathematics.

GPTQ (Frantar et al., ICLR 2023), and its refinement by coordinate descent (QuantEase, Behdin et al., 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.stages.layerwise import damped

COLUMNS_AT_ONCE = 128
"""Later columns see the errors of so many at a time (GPTQ, section 3.3, lazy batch updates)."""
SWEEPS = 4
"""Most of what coordinate descent gains it has gained by then."""


Limits = tuple[int, int] | tuple[Tensor, Tensor]
"""Smallest and largest code less its zero point: two numbers, or float (out, in) each."""


def gptq(weight: Tensor, scale: Tensor, gram: Tensor, limits: Limits, block: int = 0) -> Tensor:
    """Values `codes * scale` of a weight, each column rounded after the errors of those before it were spread on it.

    weight: float (out, in). scale: (out,), or (out, in / block). gram: (in, in), the sum of x x^T over calibration
    inputs, which is the Hessian of every output's squared error. Codes lie within the limits. Columns go in the order
    of falling diagonal, the most used first. Zeros of the weight stay zeros. Returns float32 (out, in).
    Source: GPTQ, sections 3.1 to 3.3.
    """
    inverse, order = _inverse_factor(gram)
    left = weight.double()[:, order].clone()
    stays = weight[:, order] != 0
    steps = _column_scales(scale.double(), weight.shape[1], block)[:, order]
    low, high = (bound[:, order] for bound in _bounds(limits, left))
    done = torch.empty_like(left)
    for start in range(0, left.shape[1], COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, left.shape[1])
        errors = torch.empty_like(left[:, start:stop])
        for column in range(start, stop):
            step = steps[:, column]
            codes = torch.round(left[:, column] / step).clamp(low[:, column], high[:, column])
            done[:, column] = torch.where(stays[:, column], codes * step, 0.0)
            error = (left[:, column] - done[:, column]) / inverse[column, column]
            left[:, column + 1 : stop] -= error[:, None] * inverse[column, column + 1 : stop]
            errors[:, column - start] = error
        left[:, stop:] -= errors @ inverse[start:stop, stop:]
    result = torch.empty_like(done)
    result[:, order] = done
    return result.float()


def refine(
    weight: Tensor, values: Tensor, scale: Tensor, gram: Tensor, limits: Limits, block: int = 0
) -> tuple[Tensor, Tensor]:
    """Values and scales nearer to the weight's outputs: each code and each scale in turn takes the value that is best
    beside all others.

    weight, values: float (out, in), the latter `codes * scale`, as `gptq` gives them. scale: (out,), or
    (out, in / block). gram: (in, in). Codes stay within the limits, zeros of the weight zeros; the error never grows.
    Source: QuantEase, section 3.2; the scales are ours.
    """
    hessian, width, bounds = damped(gram), weight.shape[1], _bounds(limits, weight)
    runs = [slice(start, start + (block or width)) for start in range(0, width, block or width)]
    scales = scale.double().reshape(len(weight), -1).clone()
    codes = (values.double() / _column_scales(scale.double(), width, block)).round()
    residual, stays = (weight.double() - values.double()) @ hessian, weight != 0
    for _ in range(SWEEPS):
        for number, run in enumerate(runs):
            own = scales[:, number]
            for start in range(run.start, run.stop, COLUMNS_AT_ONCE):
                columns = slice(start, min(start + COLUMNS_AT_ONCE, run.stop))
                here = (bounds[0][:, columns], bounds[1][:, columns])
                moved = _descend(
                    codes[:, columns], residual[:, columns], own, stays[:, columns], hessian[columns, columns], here
                )
                residual -= (moved * own[:, None]) @ hessian[columns]
                codes[:, columns] += moved
            gain = _gain(own, codes[:, run], residual[:, run], hessian[run, run])
            residual -= (gain[:, None] * codes[:, run]) @ hessian[run]
            own += gain
    found = scales.reshape(scale.shape)
    return (codes * _column_scales(found, width, block)).float(), found.float()


def _descend(
    codes: Tensor, residual: Tensor, scale: Tensor, stays: Tensor, hessian: Tensor, limits: tuple[Tensor, Tensor]
) -> Tensor:
    """By how much each code of a few columns moves, one column after the other: float64 (out, columns)."""
    found, residual = codes.clone(), residual.clone()
    for column in range(codes.shape[1]):
        wanted = found[:, column] + residual[:, column] / (scale * hessian[column, column])
        allowed = wanted.round().clamp(limits[0][:, column], limits[1][:, column])
        new = torch.where(stays[:, column], allowed, 0.0)
        residual -= ((new - found[:, column]) * scale)[:, None] * hessian[column]
        found[:, column] = new
    return found - codes


def _gain(scale: Tensor, codes: Tensor, residual: Tensor, hessian: Tensor) -> Tensor:
    """What brings a scale to its best value, float64 (out,); 0 where that were not positive, or all codes are zero."""
    power = (codes @ hessian * codes).sum(dim=1)
    gain = (codes * residual).sum(dim=1) / power.clamp(min=torch.finfo(power.dtype).tiny)
    return torch.where(scale + gain > 0, gain, 0.0)


def _bounds(limits: Limits, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both limits of every weight: float64 (out, in)."""
    low, high = (torch.as_tensor(one, dtype=torch.float64).expand(weight.shape) for one in limits)
    return low, high


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
