"""A mask that all weights of a layer agree on, instead of one group after the other (ALPS, Meng et al., NeurIPS 2024).

Pure tensor mathematics. With a curvature by row it is ALPS; what outputs have in common, as K-FAC tells it, is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.sparsity import Pattern
from vitslim.stages.prune.two_four.patterns import pattern_mask
from vitslim.stages.prune.two_four.sparsegpt import refit, refit_rows, sparsegpt_mask
from vitslim.stages.reconstruction.curvature import Curvature

PENALTY = 0.1
"""At the start, for curvatures whose diagonals are one."""
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""The penalty grows by the first factor whose share of weights has changed sides (section 3.2)."""
EVERY = 3
STEPS_MIN, STEPS_MAX = 30, 300
"""The mask settles within about a hundred steps."""


def alps_mask(weight: Tensor, curvature: Curvature, pattern: Pattern) -> Tensor:
    """Where weights stay, by alternating directions: dense weights that cost little, sparse ones near those.

    weight: float (out, in). Returns bool (out, in). Source: ALPS, Algorithm 1.
    """
    size = curvature.diagonal().sqrt()
    (of_row, rows), (of_column, columns) = (_eigen(one) for one in (curvature.outputs, curvature.inputs))
    cost = (of_row[:, None] * of_column).clamp(min=0)
    whole = (weight * size).float()
    wanted = (rows.T @ whole @ columns) * cost
    sparse, dual, penalty = whole, torch.zeros_like(whole), PENALTY
    mask = before = torch.zeros(weight.shape, dtype=torch.bool)
    for step in range(1, STEPS_MAX + 1):
        pulled = rows.T @ (penalty * sparse - dual) @ columns
        near = rows @ ((wanted + pulled) / (cost + penalty)) @ columns.T
        target = near + dual / penalty
        mask = pattern_mask(target.abs(), pattern)
        sparse = target * mask
        dual = dual + penalty * (near - sparse)
        if step % EVERY == 0:
            changed = float((mask & ~before).sum() / mask.sum())
            if changed == 0 and step > STEPS_MIN:
                break
            penalty *= next(factor for share, factor in GROWTH if changed >= share)
            before = mask
    return mask


def best_refit(weight: Tensor, curvature: Curvature, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Mask and weights within it, by ALPS or by SparseGPT: whichever costs less.

    weight: float (out, in). ALPS wins but where inputs hardly differ, as neighboring pixels.
    """
    masks = [alps_mask(weight, curvature, pattern), sparsegpt_mask(weight, curvature, pattern)]
    best = min(masks, key=lambda mask: curvature.cost(weight - refit_rows(weight, mask, curvature)))
    return best, refit(weight, best, curvature)


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a matrix brought to a diagonal of one: float32."""
    size = matrix.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(matrix / size / size[:, None])
    return values.float(), vectors.float()
