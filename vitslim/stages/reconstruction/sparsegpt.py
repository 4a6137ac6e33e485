"""Saliencies and masks that account for the layer's inputs. Pure tensor mathematics.

SparseGPT (Frantar and Alistarh, ICML 2023) and Wanda (Sun et al., ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitslim.stages.reconstruction.curvature import Curvature

COLUMNS_AT_ONCE = 128
"""Columns after which the errors are spread to all later columns (lazy batch updates, GPTQ, section 3.3)."""

ChooseMask = Callable[[Tensor], Tensor]
"""Bool mask of the weights to keep, from their saliencies: (out, in) each. It defines the sparsity pattern."""


def wanda_scores(weight: Tensor, curvature: Curvature) -> Tensor:
    """Return `|w|` times the norm of the input: float (out, in). The norm is damped as for the other scores.

    Source: Wanda, equation 1.
    """
    return weight.abs() * curvature.inputs.diagonal().sqrt().to(weight.dtype)


def sparsegpt_mask(weight: Tensor, curvature: Curvature, choose: ChooseMask, span: int) -> Tensor:
    """Return the mask of the weights that are costly to remove: bool (out, in).

    weight: float (out, in), `in` a multiple of `span`. choose: the mask of `span` adjacent columns. Columns are visited
    in order; the errors of removed weights are compensated by later columns of the same row before these are decided.
    Source: SparseGPT, sections 3.2 and 3.3.
    """
    factor = torch.linalg.cholesky(torch.linalg.inv(curvature.inputs), upper=True)
    left = weight.double().clone()
    mask = torch.empty(weight.shape, dtype=torch.bool)
    at_once = max(1, COLUMNS_AT_ONCE // span) * span
    for start in range(0, left.shape[1], at_once):
        block = slice(start, start + at_once)
        mask[:, block], errors = _decide(left[:, block], factor[block, block], choose, span)
        left[:, block.stop :] -= errors @ factor[block, block.stop :]
    return mask


def _decide(weight: Tensor, factor: Tensor, choose: ChooseMask, span: int) -> tuple[Tensor, Tensor]:
    """Return the mask of a block of columns and the errors that the columns after it compensate: (out, columns) each.

    weight: float64 (out, columns). factor: rows and columns of the block, upper triangular float64 (columns, columns).
    """
    left, errors = weight.T.clone(), torch.zeros_like(weight.T)  # transposed, so that a column is contiguous
    mask = torch.empty(weight.shape, dtype=torch.bool)
    for start in range(0, len(left), span):
        columns = slice(start, start + span)
        corner = factor[columns, columns]
        mask[:, columns] = choose((left[columns] / corner.diagonal()[:, None]).square().T)
        for column in range(start, columns.stop):
            errors[column] = left[column].masked_fill(mask[:, column], 0.0) / factor[column, column]
            left[column : columns.stop] -= factor[column, column : columns.stop, None] * errors[column]
        left[columns.stop :] -= factor[columns, columns.stop :].T @ errors[columns]
    return mask, errors.T
