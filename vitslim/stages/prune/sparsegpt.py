"""Masks and weights that keep the outputs of a layer (SparseGPT, Frantar and Alistarh, ICML 2023; Wanda, Sun et al.,
ICLR 2024). Pure tensor mathematics.

`gram` is the sum of x x^T over the inputs of a layer: half the Hessian of the squared error of every output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.graph.sparse import Pattern
from vitslim.stages.layerwise import damped
from vitslim.stages.prune.sparsity import pattern_mask

SOLVED_AT_ONCE_BYTES = 2**28


def wanda_scores(weight: Tensor, gram: Tensor) -> Tensor:
    """|w| times the norm of its input: float (out, in) (Wanda, equation 1)."""
    return weight.abs() * gram.diagonal().clamp(min=0).sqrt().to(weight.dtype)


def sparsegpt_mask(weight: Tensor, gram: Tensor, pattern: Pattern) -> Tensor:
    """Where weights stay that are dear to lose, each group decided after the errors of those before it were spread.

    weight: float (out, in). gram: float64 (in, in). Returns bool (out, in). Source: SparseGPT, sections 3.2 and 3.3.
    """
    factor = torch.linalg.cholesky(torch.linalg.inv(damped(gram)), upper=True)
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


def refit(weight: Tensor, mask: Tensor, gram: Tensor) -> Tensor:
    """The weights within a mask whose outputs are nearest to those of the whole weight: float (out, in).

    weight: float (out, in); mask: bool, of its shape; gram: float64 (in, in). Solves, for each row and its kept inputs
    S, `gram[S, S] w = (gram @ row)[S]` exactly, where SparseGPT's sweep only approximates it. All rows keep equally
    many.
    """
    hessian = damped(gram)
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
