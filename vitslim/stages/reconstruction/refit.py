"""The best weights within a given mask. Pure tensor mathematics."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vitslim.stages.reconstruction.curvature import Curvature

TOLERANCE = 1e-7
"""Conjugate gradients end when the remaining gain is this fraction of the whole cost, or after STEPS_MAX."""
STEPS_MAX = 200


def refit(weight: Tensor, mask: Tensor, curvature: Curvature) -> Tensor:
    """Return the weights within a mask that minimize the cost of the change: float (out, in).

    weight: float (out, in). mask: bool (out, in), with as many kept weights in each row. Rows compensate each other
    through the curvature of the outputs. Solved by conjugate gradients with a diagonal preconditioner, starting from
    `refit_rows`.
    """
    single = curvature.single()
    return _descended(weight, refit_rows(weight, mask, curvature), mask, single.gradient, single.diagonal())


def refit_rows(weight: Tensor, mask: Tensor, curvature: Curvature) -> Tensor:
    """Return the weights within a mask that minimize the squared error of each output on its own: float (out, in).

    SparseGPT's column sweep approximates this solution. Solved by conjugate gradients, all rows together: a
    factorization for each row takes ten times as long.
    """
    inputs = (curvature.inputs / curvature.inputs.diagonal().mean()).float()
    return _descended(weight, weight * mask, mask, lambda change: change @ inputs, inputs.diagonal())


def _descended(
    weight: Tensor, start: Tensor, mask: Tensor, gradient: Callable[[Tensor], Tensor], diagonal: Tensor
) -> Tensor:
    """Return the best weights within the mask, by conjugate gradients with a diagonal preconditioner from `start`.

    gradient: half the gradient of the cost at a change of the weight, float32 (out, in). diagonal: the cost of a unit
    change of each weight alone, (out, in) or (in,).
    """
    whole, found = weight.float(), start.float()
    left = mask * gradient(whole - found)
    scaled = left / diagonal
    step, power = scaled, (left * scaled).sum()
    enough = TOLERANCE * (gradient(whole) * whole).sum()
    for _ in range(STEPS_MAX):
        if power <= enough:
            break
        pull = mask * gradient(step)
        length = power / (step * pull).sum()
        found, left = found + length * step, left - length * pull
        scaled = left / diagonal
        power, before = (left * scaled).sum(), power
        step = scaled + power / before * step
    return found.to(weight.dtype)
