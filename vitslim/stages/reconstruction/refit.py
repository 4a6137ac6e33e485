"""The best weights within a given mask. Pure tensor mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.stages.reconstruction.curvature import Curvature

BYTES_AT_ONCE = 2**28
"""Memory of the systems of equations that are solved together."""
TOLERANCE = 1e-6
"""Conjugate gradients end when the remaining gain is this fraction of the whole cost, or after STEPS_MAX."""
STEPS_MAX = 200
EXACT_MAX = 768
"""Largest number of weights in a row that a factorization of its own solves: it takes the cube of this number."""


def refit(weight: Tensor, mask: Tensor, curvature: Curvature) -> Tensor:
    """Return the weights within a mask that minimize the cost of the change: float (out, in).

    weight: float (out, in). mask: bool (out, in), with as many kept weights in each row. Rows compensate each other
    through the curvature of the outputs. Solved by conjugate gradients with a diagonal preconditioner, starting from
    `refit_rows`.
    """
    return _descended(weight, refit_rows(weight, mask, curvature), mask, curvature)


def _descended(weight: Tensor, start: Tensor, mask: Tensor, curvature: Curvature) -> Tensor:
    """Return the best weights by conjugate gradients with a diagonal preconditioner, in float32, from `start`."""
    whole, found, curvature = weight.float(), start.float(), curvature.single()
    size = curvature.diagonal()
    left = mask * curvature.gradient(whole - found)
    scaled = left / size
    step, power = scaled, (left * scaled).sum()
    enough = TOLERANCE * curvature.cost(whole)
    for _ in range(STEPS_MAX):
        if power <= enough:
            break
        pull = mask * curvature.gradient(step)
        length = power / (step * pull).sum()
        found, left = found + length * step, left - length * pull
        scaled = left / size
        power, before = (left * scaled).sum(), power
        step = scaled + power / before * step
    return found.to(weight.dtype)


def refit_rows(weight: Tensor, mask: Tensor, curvature: Curvature) -> Tensor:
    """Return the weights within a mask that minimize the squared error of each output on its own: float (out, in).

    Exact, where SparseGPT's column sweep is an approximation. Solves `inputs[S, S] w = (inputs @ row)[S]` for the kept
    inputs S of each row; every row must keep as many. Rows that keep more than `EXACT_MAX` are solved together by
    conjugate gradients.
    """
    hessian = curvature.inputs
    kept = int(mask[0].sum())
    if kept > EXACT_MAX:
        alone = Curvature(hessian, torch.eye(len(mask), dtype=hessian.dtype))
        return _descended(weight, weight * mask, mask, alone)
    right = weight.double() @ hessian
    places = mask.nonzero()[:, 1].reshape(len(mask), kept)
    result = torch.zeros_like(weight)
    step = max(1, BYTES_AT_ONCE // (8 * kept * kept))
    for rows in (slice(start, start + step) for start in range(0, len(mask), step)):
        here = places[rows]
        inner = hessian[here[:, :, None], here[:, None, :]]
        solved = torch.cholesky_solve(right[rows].gather(1, here)[..., None], torch.linalg.cholesky(inner))
        result[rows] = result[rows].scatter(1, here, solved[..., 0].to(result.dtype))
    return result
