"""The 2:4 pattern: of every four consecutive weights along the reduction dimension two stay (GPUSQ, section 2).

Pure tensor mathematics, no model. A weight is always seen as (out, in): groups of four run along `in`.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 4
KEPT = 2

OUT_MULTIPLE = 8
IN_MULTIPLE = 16
"""Sparse kernels take a layer only when its sizes are multiples of these; other tools skip such layers silently."""


def two_four_mask(weight: Tensor) -> Tensor:
    """Where the two largest magnitudes of each group of four are: bool, same shape as `weight`.

    weight: float (out, in) with `in` a multiple of 4. Of equal magnitudes the one with the lower index stays, so the
    mask is a function of the weight alone. No other 2:4 mask keeps a larger sum of magnitudes. Raises ValueError for
    another shape.
    """
    groups = _grouped(weight).abs()
    order = torch.sort(groups, dim=-1, descending=True, stable=True).indices
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :KEPT], True)
    return mask.view(weight.shape)


def is_two_four(mask: Tensor) -> bool:
    """Whether a bool mask (out, in) keeps exactly two of each group of four along `in`."""
    return bool((_grouped(mask).sum(dim=-1) == KEPT).all())


def magnitudes(weight: Tensor, mask: Tensor) -> tuple[float, float]:
    """Sums of |w| over the kept weights and over all weights, in float64; the tensors have one shape."""
    size = weight.detach().abs().double()
    return float((size * mask).sum()), float(size.sum())


def obstacles(out_features: int, in_features: int) -> str:
    """Why a layer of this size cannot be 2:4 sparse, every reason named; empty when it can."""
    reasons = []
    if out_features % OUT_MULTIPLE:
        reasons.append(f"{out_features} outputs are no multiple of {OUT_MULTIPLE}")
    if in_features % IN_MULTIPLE:
        reasons.append(f"{in_features} inputs are no multiple of {IN_MULTIPLE}")
    return " and ".join(reasons)


def _grouped(weight: Tensor) -> Tensor:
    if weight.ndim != 2 or weight.shape[1] % GROUP:
        raise ValueError(f"expected a weight (out, in) with in a multiple of {GROUP}, got {tuple(weight.shape)}")
    return weight.reshape(weight.shape[0], weight.shape[1] // GROUP, GROUP)
