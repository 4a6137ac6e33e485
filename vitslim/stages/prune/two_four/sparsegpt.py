"""Masks and weights that keep the outputs of a layer (SparseGPT, Frantar and Alistarh, ICML 2023; Wanda, Sun et al.,
ICLR 2024). Pure tensor mathematics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.sparsity import Pattern
from vitslim.stages.prune.two_four.patterns import pattern_mask
from vitslim.stages.reconstruction.curvature import Curvature

SOLVED_AT_ONCE_BYTES = 2**28
EXACT = 1e-6
"""Conjugate gradients end where what is left to win is such a fraction of the whole cost, or after STEPS_MAX."""
STEPS_MAX = 200


def wanda_scores(weight: Tensor, curvature: Curvature) -> Tensor:
    """|w| times the norm of its input, damped as for the other scores: float (out, in) (Wanda, equation 1)."""
    return weight.abs() * curvature.inputs.diagonal().sqrt().to(weight.dtype)


def sparsegpt_mask(weight: Tensor, curvature: Curvature, pattern: Pattern) -> Tensor:
    """Where weights stay that are dear to lose, each group decided after the errors of those before it were spread.

    weight: float (out, in). Every output for itself. Returns bool (out, in). Source: SparseGPT, sections 3.2 and 3.3.
    """
    factor = torch.linalg.cholesky(torch.linalg.inv(curvature.inputs), upper=True)
    left = weight.double().clone()
    mask = torch.empty(weight.shape, dtype=torch.bool)
    for start in range(0, left.shape[1], pattern.span):
        columns = slice(start, start + pattern.span)
        corner = factor[columns, columns]
        mask[:, columns] = pattern_mask((left[:, columns] / corner.diagonal()).square(), pattern)
        errors = torch.zeros_like(left[:, columns])
        for column in range(pattern.span):
            place = start + column
            lost = torch.where(mask[:, place], 0.0, left[:, place])
            errors[:, column] = lost / factor[place, place]
            left[:, place : columns.stop] -= errors[:, column, None] * factor[place, place : columns.stop]
        left[:, columns.stop :] -= errors @ factor[columns, columns.stop :]
    return mask


def refit(weight: Tensor, mask: Tensor, curvature: Curvature) -> Tensor:
    """The weights within a mask that cost least beside the whole weight: float (out, in).

    weight: float (out, in); mask: bool, of its shape. By conjugate gradients, each weight in units of its own cost,
    from what is best for every row alone.
    """
    whole, found, curvature = weight.float(), refit_rows(weight, mask, curvature).float(), curvature.single()
    size = curvature.diagonal()
    left = mask * curvature.gradient(whole - found)
    scaled = left / size
    step, power = scaled, (left * scaled).sum()
    enough = EXACT * curvature.cost(whole)
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
    """The same for every row alone, exactly, which SparseGPT's sweep only approximates: float (out, in).

    Solves `inputs[S, S] w = (inputs @ row)[S]` for the inputs S that a row keeps, as many in each.
    """
    hessian = curvature.inputs
    wanted = weight.double() @ hessian
    kept = int(mask[0].sum())
    places = mask.nonzero()[:, 1].reshape(len(mask), kept)
    result = torch.zeros_like(weight)
    step = max(1, SOLVED_AT_ONCE_BYTES // (8 * kept * kept))
    for rows in (slice(start, start + step) for start in range(0, len(mask), step)):
        here = places[rows]
        inner = hessian[here[:, :, None], here[:, None, :]]
        solved = torch.cholesky_solve(wanted[rows].gather(1, here)[..., None], torch.linalg.cholesky(inner))
        result[rows] = result[rows].scatter(1, here, solved[..., 0].to(result.dtype))
    return result
