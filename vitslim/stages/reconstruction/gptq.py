"""Rounding of weights in which later weights compensate the errors of earlier ones. Pure tensor mathematics.

`gptq` is GPTQ (Frantar et al., ICLR 2023). `refine` improves its result by descent on all integers and scales.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitslim.stages.reconstruction.curvature import Curvature

COLUMNS_AT_ONCE = 128
"""Columns after which the errors are spread to all later columns (lazy batch updates, GPTQ, section 3.3)."""
STEPS_MAX = 150
"""Descent steps of a refinement, which has converged almost fully by then."""
SCALES_EVERY = 10
"""Descent steps between two solutions of the scales."""
FIRST_SHARE, SHARE_MAX, GROWTH = 0.1, 0.5, 1.2
"""Fraction of the integers with a gain that move in one step: the first, the largest, and the growth after a step that
lowered the cost. A step that did not halves the fraction."""
RIDGE = 1e-6
"""Added to the diagonal of the equations of the scales, as a fraction of its mean."""

Limits = tuple[int, int] | tuple[Tensor, Tensor]
"""Smallest and largest integer minus its zero point: two numbers, or two float tensors (out, in)."""


def gptq(weight: Tensor, scale: Tensor, curvature: Curvature, limits: Limits, group_size: int = 0) -> Tensor:
    """Return the dequantized weight, `integers * scale`: float32 (out, in).

    weight: float (out, in); its zeros stay zeros. scale: (out,), or (out, in / group_size). Columns are rounded in the
    order of falling curvature diagonal, each after it has compensated the errors of those before it; outputs are
    independent. Source: GPTQ, sections 3.1 to 3.3.
    """
    inverse, order = _inverse_factor(curvature.inputs)
    left = weight.double()[:, order].clone()
    nonzero = weight[:, order] != 0
    scales = _column_scales(scale.double(), weight.shape[1], group_size)[:, order]
    low, high = (bound[:, order] for bound in _bounds(limits, left))
    done = torch.empty_like(left)
    for start in range(0, left.shape[1], COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, left.shape[1])
        errors = torch.empty_like(left[:, start:stop])
        for column in range(start, stop):
            step = scales[:, column]
            integers = torch.round(left[:, column] / step).clamp(low[:, column], high[:, column])
            done[:, column] = torch.where(nonzero[:, column], integers * step, 0.0)
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
    """Return dequantized weights and scales of a lower cost, by descent on all integers of a layer at once.

    weight, values: float (out, in), the latter `integers * scale` as `gptq` returns it. scale: (out,), or
    (out, groups). limits: as in `gptq`. unit: float (out, in), integers of which all integers and limits are multiples;
    None for ones. Every step moves the integers with the largest gains, and more of them after a step that lowered the
    cost. Every SCALES_EVERY steps the scales are solved jointly. Zeros of the weight stay zeros; the cost never grows.
    Descent as in QuantEase (Behdin et al., 2023, section 3.2), on the cost of YAQA (Tseng et al., 2025).
    """
    whole, curvature, width = weight.float(), curvature.single(), weight.shape[1]
    low, high = (bound.float() for bound in _bounds(limits, weight))
    scales = scale.float().reshape(len(weight), -1)
    unit = torch.ones(()) if unit is None else unit
    integers = (values / (_spread(scales, width) * unit)).round() * unit
    diagonal, share = curvature.diagonal(), FIRST_SHARE
    now = _State(integers, scales, *_cost(whole, integers, scales, curvature))
    for step in range(STEPS_MAX):
        if step % SCALES_EVERY == 0:
            now = _rescaled(now, whole, curvature)
        moves, gains = _moves(now, diagonal, (low, high), unit, whole != 0)
        candidates = int((gains > 0).sum())
        if not candidates:
            break
        count = max(1, int(share * candidates))
        chosen = gains.flatten().topk(count).indices
        moved = now.integers.flatten().scatter_add(0, chosen, moves.flatten()[chosen]).view_as(integers)
        after = _better(now, whole, curvature, moved, now.scales)
        if after is now and count == 1:
            break
        share = share / 2 if after is now else min(SHARE_MAX, GROWTH * share)
        now = after
    now = _rescaled(now, whole, curvature)
    return now.integers * _spread(now.scales, width), now.scales.reshape(scale.shape)


class _State(NamedTuple):
    """Integers (out, in), scales (out, groups), half the gradient of the cost (out, in), and the cost."""

    integers: Tensor
    scales: Tensor
    gradient: Tensor
    cost: float


def _cost(weight: Tensor, integers: Tensor, scales: Tensor, curvature: Curvature) -> tuple[Tensor, float]:
    error = weight - integers * _spread(scales, weight.shape[1])
    gradient = curvature.gradient(error)
    return gradient, float((gradient * error).sum())


def _better(now: _State, weight: Tensor, curvature: Curvature, integers: Tensor, scales: Tensor) -> _State:
    """Return the state of these integers and scales when it costs less, else `now`."""
    after = _State(integers, scales, *_cost(weight, integers, scales, curvature))
    return after if after.cost < now.cost else now


def _rescaled(now: _State, weight: Tensor, curvature: Curvature) -> _State:
    return _better(now, weight, curvature, now.integers, _best_scales(now, curvature))


def _moves(
    now: _State, diagonal: Tensor, bounds: tuple[Tensor, Tensor], unit: Tensor, nonzero: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the best move of each integer while the others stay, and its gain: (out, in) each."""
    step = _spread(now.scales, now.integers.shape[1])
    target = (((now.integers + now.gradient / (step * diagonal)) / unit).round() * unit).clamp(*bounds)
    moves = torch.where(nonzero, target - now.integers, 0.0)
    return moves, moves * step * (2 * now.gradient - moves * step * diagonal)


def _best_scales(now: _State, curvature: Curvature) -> Tensor:
    """Return the scales (out, groups) of least cost, solved jointly for one group after the other.

    A group keeps its scales when one of them would not be positive.
    """
    found, gradient = now.scales.clone(), now.gradient.clone()
    width = now.integers.shape[1] // found.shape[1]
    for group in range(found.shape[1]):
        columns = slice(group * width, (group + 1) * width)
        integers = now.integers[:, columns]
        power = curvature.outputs * (integers @ curvature.inputs[columns, columns] @ integers.T)
        power.diagonal().add_(power.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny) * RIDGE)
        gain = torch.linalg.solve(power, (integers * gradient[:, columns]).sum(dim=1))
        if bool((found[:, group] + gain > 0).all()):
            found[:, group] += gain
            gradient -= curvature.outputs @ (gain[:, None] * integers) @ curvature.inputs[columns]
    return found


def _bounds(limits: Limits, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return both limits of every weight: float64 (out, in)."""
    low, high = (torch.as_tensor(one, dtype=torch.float64).expand(weight.shape) for one in limits)
    return low, high


def _inverse_factor(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Return the upper Cholesky factor of the inverse of a Hessian in rounding order, and that order."""
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    hessian = hessian[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True), order


def _column_scales(scale: Tensor, columns: int, group_size: int) -> Tensor:
    """Return the scale of every weight: (out, in)."""
    return _spread(scale if group_size else scale[:, None], columns)


def _spread(scales: Tensor, columns: int) -> Tensor:
    """Repeat scales (out, groups) over the columns of their groups: (out, columns)."""
    return scales.repeat_interleave(columns // scales.shape[1], dim=1)
