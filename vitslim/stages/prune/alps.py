"""A mask that all weights of a layer agree on, instead of one group after the other (ALPS, Meng et al., NeurIPS 2024).

Pure tensor mathematics. `gram` is the sum of x x^T over the inputs of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.graph.sparse import Pattern
from vitslim.stages.layerwise import damped
from vitslim.stages.prune.sparsegpt import refit, sparsegpt_mask
from vitslim.stages.prune.sparsity import pattern_mask

PENALTY = 0.1
"""At the start, for a gram matrix whose diagonal is one."""
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""The penalty grows by the first factor whose share of weights has changed sides (section 3.2)."""
EVERY = 3
STEPS_MIN, STEPS_MAX = 30, 300
"""The mask settles within about a hundred steps."""


def alps_mask(weight: Tensor, gram: Tensor, pattern: Pattern) -> Tensor:
    """Where weights stay, by alternating directions: dense weights near the layer's outputs, sparse ones near those.

    weight: float (out, in). gram: float64 (in, in). Returns bool (out, in). Source: ALPS, Algorithm 1.
    """
    hessian = damped(gram)
    size = hessian.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(hessian / size / size[:, None])
    whole = weight.double() * size
    wanted = whole @ vectors * values @ vectors.T
    sparse, dual, penalty = whole, torch.zeros_like(whole), PENALTY
    mask = before = torch.zeros(weight.shape, dtype=torch.bool)
    for step in range(1, STEPS_MAX + 1):
        near = (wanted - dual + penalty * sparse) @ vectors / (values + penalty) @ vectors.T
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


def best_refit(weight: Tensor, gram: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Mask and weights within it, by ALPS or by SparseGPT: whichever leaves the outputs nearer to what they were.

    weight: float (out, in). gram: float64 (in, in). ALPS wins but where inputs hardly differ, as neighbouring pixels.
    """
    masks = [alps_mask(weight, gram, pattern), sparsegpt_mask(weight, gram, pattern)]
    found = [(mask, refit(weight, mask, gram)) for mask in masks]
    return min(found, key=lambda one: output_error(weight, one[1], gram))


def output_error(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    """Squared error of a layer's outputs as a fraction of their power; weights float (out, in), gram (in, in)."""
    lost, whole = (weight - new).double(), weight.double()
    return float((lost @ gram * lost).sum() / (whole @ gram * whole).sum().clamp(min=torch.finfo(torch.float64).tiny))
