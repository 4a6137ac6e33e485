"""Masks chosen for all weights of a layer at once (ALPS, Meng et al., NeurIPS 2024). Pure tensor mathematics.

ALPS uses the curvature of the inputs alone. Here the curvature of the outputs (K-FAC) can enter as well, so that the
weights of different rows compensate each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.stages.reconstruction.curvature import Curvature
from vitslim.stages.reconstruction.sparsegpt import ChooseMask

PENALTY = 0.1
"""Initial penalty, for curvatures whose diagonals are one."""
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Growth of the penalty: the factor of the first entry whose fraction of the mask changed (ALPS, section 3.2)."""
EVERY = 3
"""Steps between updates of the penalty."""
STEPS_MIN, STEPS_MAX = 30, 300
"""The mask usually converges within about a hundred steps."""


def alps_mask(weight: Tensor, curvature: Curvature, choose: ChooseMask) -> Tensor:
    """Return the mask of the weights to keep: bool (out, in). Source: ALPS, Algorithm 1.

    weight: float (out, in). choose: the mask from saliencies (out, in). Alternates between dense weights of low cost
    and sparse weights near them (ADMM).
    """
    size = curvature.diagonal().sqrt()
    (of_row, rows), (of_column, columns) = (_eigen(one) for one in (curvature.outputs, curvature.inputs))
    cost = (of_row[:, None] * of_column).clamp(min=0)
    whole = (weight * size).float()
    right = (rows.T @ whole @ columns) * cost
    sparse, dual, penalty = whole, torch.zeros_like(whole), PENALTY
    mask = before = torch.zeros(weight.shape, dtype=torch.bool)
    for step in range(1, STEPS_MAX + 1):
        pulled = rows.T @ (penalty * sparse - dual) @ columns
        near = rows @ ((right + pulled) / (cost + penalty)) @ columns.T
        target = near + dual / penalty
        mask = choose(target.abs())
        sparse = target * mask
        dual = dual + penalty * (near - sparse)
        if step % EVERY == 0:
            changed = float((mask & ~before).sum() / mask.sum())
            if changed == 0 and step > STEPS_MIN:
                break
            penalty *= next(factor for share, factor in GROWTH if changed >= share)
            before = mask
    return mask


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of a matrix scaled to a diagonal of one: float32."""
    size = matrix.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(matrix / size / size[:, None])
    return values.float(), vectors.float()
