"""Rounding of weights that makes up for its own errors. Pure tensor mathematics.

GPTQ (Frantar et al., ICLR 2023), and a refinement in which all codes and scales of a layer make up for each other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitslim.stages.reconstruction.curvature import Curvature

COLUMNS_AT_ONCE = 128
"""Later columns see the errors of so many at a time (GPTQ, section 3.3, lazy batch updates)."""
STEPS_MAX = 150
"""Most of what a refinement gains it has gained by then."""
SCALES_EVERY = 10
FIRST_SHARE, SHARE_MAX, GROWTH = 0.1, 0.5, 1.2
"""Of the codes that would better move so many do at once; more after a step that was one for the better, half after
one that was not."""
EXACT = 1e-6
"""Added to the diagonal of what scales are solved from, as a fraction of its mean."""

Limits = tuple[int, int] | tuple[Tensor, Tensor]
"""Smallest and largest code less its zero point: two numbers, or float (out, in) each."""


def gptq(weight: Tensor, scale: Tensor, curvature: Curvature, limits: Limits, block: int = 0) -> Tensor:
    """Values `codes * scale` of a weight, each column rounded after the errors of those before it were spread on it.

    weight: float (out, in). scale: (out,), or (out, in / block). Codes lie within the limits. Columns go in the order
    of falling diagonal, the most used first; every output for itself. Zeros of the weight stay zeros. Returns float32
    (out, in). Source: GPTQ, sections 3.1 to 3.3.
    """
    inverse, order = _inverse_factor(curvature.inputs)
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
    weight: Tensor, values: Tensor, scale: Tensor, curvature: Curvature, limits: Limits, unit: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Values and scales that cost less: those codes move that promise most beside all others, many at a time as long
    as that is for the better, and every few steps all scales take the values that are best together.

    weight, values: float (out, in), the latter `codes * scale`, as `gptq` gives them. scale: (out,), or
    (out, in / block). Codes stay within the limits, zeros of the weight zeros; the cost never grows. unit: float
    (out, in), whole numbers of which codes and limits are multiples; None for ones. Descent as in QuantEase (Behdin et
    al., 2023, section 3.2), of all codes at once, on the cost of YAQA (Tseng et al., 2025).
    """
    whole, curvature, width = weight.float(), curvature.single(), weight.shape[1]
    low, high = (bound.float() for bound in _bounds(limits, weight))
    scales = scale.float().reshape(len(weight), -1)
    unit = torch.ones(()) if unit is None else unit
    codes = (values / (_spread(scales, width) * unit)).round() * unit
    each, share = curvature.diagonal(), FIRST_SHARE
    now = _State(codes, scales, *_cost(whole, codes, scales, curvature))
    for step in range(STEPS_MAX):
        if step % SCALES_EVERY == 0:
            now = _rescaled(now, whole, curvature)
        moves, gains = _promising(now, each, (low, high), unit, whole != 0)
        wanting = int((gains > 0).sum())
        if not wanting:
            break
        count = max(1, int(share * wanting))
        some = gains.flatten().topk(count).indices
        moved = now.codes.flatten().scatter_add(0, some, moves.flatten()[some]).view_as(codes)
        after = _better(now, whole, curvature, moved, now.scales)
        if after is now and count == 1:
            break
        share = share / 2 if after is now else min(SHARE_MAX, GROWTH * share)
        now = after
    now = _rescaled(now, whole, curvature)
    return now.codes * _spread(now.scales, width), now.scales.reshape(scale.shape)


class _State(NamedTuple):
    """Codes, scales (out, runs), half the gradient of the cost there, and the cost."""

    codes: Tensor
    scales: Tensor
    gradient: Tensor
    cost: float


def _cost(weight: Tensor, codes: Tensor, scales: Tensor, curvature: Curvature) -> tuple[Tensor, float]:
    lost = weight - codes * _spread(scales, weight.shape[1])
    gradient = curvature.gradient(lost)
    return gradient, float((gradient * lost).sum())


def _better(now: _State, weight: Tensor, curvature: Curvature, codes: Tensor, scales: Tensor) -> _State:
    """The state of these codes and scales where it costs less, or the one that is."""
    after = _State(codes, scales, *_cost(weight, codes, scales, curvature))
    return after if after.cost < now.cost else now


def _rescaled(now: _State, weight: Tensor, curvature: Curvature) -> _State:
    return _better(now, weight, curvature, now.codes, _best_scales(now, curvature))


def _promising(
    now: _State, each: Tensor, bounds: tuple[Tensor, Tensor], unit: Tensor, stays: Tensor
) -> tuple[Tensor, Tensor]:
    """By how much each code had better move, the others staying, and what that gains: (out, in) each."""
    step = _spread(now.scales, now.codes.shape[1])
    wanted = (((now.codes + now.gradient / (step * each)) / unit).round() * unit).clamp(*bounds)
    moves = torch.where(stays, wanted - now.codes, 0.0)
    return moves, moves * step * (2 * now.gradient - moves * step * each)


def _best_scales(now: _State, curvature: Curvature) -> Tensor:
    """Scales that are best together, those of one run of columns after another; as they are where one were not
    positive."""
    found, gradient = now.scales.clone(), now.gradient.clone()
    width = now.codes.shape[1] // found.shape[1]
    for run in range(found.shape[1]):
        columns = slice(run * width, (run + 1) * width)
        codes = now.codes[:, columns]
        power = curvature.outputs * (codes @ curvature.inputs[columns, columns] @ codes.T)
        power.diagonal().add_(power.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny) * EXACT)
        gain = torch.linalg.solve(power, (codes * gradient[:, columns]).sum(dim=1))
        if bool((found[:, run] + gain > 0).all()):
            found[:, run] += gain
            gradient -= curvature.outputs @ (gain[:, None] * codes) @ curvature.inputs[columns]
    return found


def _bounds(limits: Limits, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both limits of every weight: float64 (out, in)."""
    low, high = (torch.as_tensor(one, dtype=torch.float64).expand(weight.shape) for one in limits)
    return low, high


def _inverse_factor(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Upper Cholesky factor of the inverse of a Hessian, rows and columns in the order they are rounded."""
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    hessian = hessian[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True), order


def _column_scales(scale: Tensor, columns: int, block: int) -> Tensor:
    """The scale of every weight: (out, in)."""
    return _spread(scale if block else scale[:, None], columns)


def _spread(scales: Tensor, columns: int) -> Tensor:
    """Scales (out, runs), each for a run of as many columns: (out, columns)."""
    return scales.repeat_interleave(columns // scales.shape[1], dim=1)
