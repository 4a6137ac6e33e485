"""Saliencies and masks that account for the layer's inputs. Pure tensor mathematics.

SparseGPT (Frantar and Alistarh, ICML 2023) and Wanda (Sun et al., ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitslim.stages.reconstruction.curvature import Curvature

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
    for start in range(0, left.shape[1], span):
        columns = slice(start, start + span)
        corner = factor[columns, columns]
        mask[:, columns] = choose((left[:, columns] / corner.diagonal()).square())
        errors = torch.zeros_like(left[:, columns])
        for column in range(span):
            place = start + column
            lost = torch.where(mask[:, place], 0.0, left[:, place])
            errors[:, column] = lost / factor[place, place]
            left[:, place : columns.stop] -= errors[:, column, None] * factor[place, place : columns.stop]
        left[:, columns.stop :] -= errors @ factor[columns, columns.stop :]
    return mask
