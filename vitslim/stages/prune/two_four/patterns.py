"""Patterns of sparse weights: of every few consecutive weights along the reduction some stay (GPUSQ, section 2).

Pure tensor mathematics, no model. A weight is always seen as (out, in): groups run along `in`. `2:4` keeps two weights
of four, `N:M` any N of M, and `2:4-pairs`, which sparse tensor cores read at INT4, two of four adjacent pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitslim.sparsity import Pattern

OUT_MULTIPLE = 8
IN_MULTIPLE = 16
"""Sparse kernels take a layer only when its sizes are multiples of these; other tools skip such layers silently."""


TWO_OF_FOUR = Pattern(2, 4)


def pattern_mask(score: Tensor, pattern: Pattern = TWO_OF_FOUR) -> Tensor:
    """Where the weights with the largest scores of each group are: bool, same shape as `score`.

    score: float (out, in), not negative, `in` a multiple of the pattern's span; a unit of several weights has the sum
    of theirs. Of equal scores the one with the lower index stays, so the mask is a function of the scores alone. No
    other mask of the pattern keeps a larger sum of scores. Raises ValueError for another shape.
    """
    units = _grouped(score, pattern).sum(dim=-1)
    order = torch.sort(units, dim=-1, descending=True, stable=True).indices
    chosen = torch.zeros_like(units, dtype=torch.bool).scatter_(-1, order[..., : pattern.kept], True)
    return chosen[..., None].expand(*units.shape, pattern.width).reshape(score.shape)


def two_four_mask(weight: Tensor) -> Tensor:
    """Where the two largest magnitudes of each group of four are: bool, same shape as `weight`, float (out, in)."""
    return pattern_mask(weight.abs())


def keeps_pattern(mask: Tensor, pattern: Pattern) -> bool:
    """Whether a bool mask (out, in) keeps exactly so many units of each group along `in`, and no half ones."""
    grouped = _grouped(mask, pattern)
    whole = grouped.all(dim=-1)
    return bool((whole == grouped.any(dim=-1)).all() and (whole.sum(dim=-1) == pattern.kept).all())


def is_two_four(mask: Tensor) -> bool:
    """Whether a bool mask (out, in) keeps exactly two of each group of four along `in`."""
    return keeps_pattern(mask, TWO_OF_FOUR)


def magnitudes(weight: Tensor, mask: Tensor) -> tuple[float, float]:
    """Sums of |w| over the kept weights and over all weights, in float64; the tensors have one shape."""
    size = weight.detach().abs().double()
    return float((size * mask).sum()), float(size.sum())


def obstacles(out_features: int, in_features: int, pattern: Pattern = TWO_OF_FOUR) -> str:
    """Why a layer of this size cannot have the pattern, every reason named; empty when it can."""
    reasons = []
    step = math.lcm(IN_MULTIPLE, pattern.span)
    if out_features % OUT_MULTIPLE:
        reasons.append(f"{out_features} outputs are no multiple of {OUT_MULTIPLE}")
    if in_features % step:
        reasons.append(f"{in_features} inputs are no multiple of {step}")
    return " and ".join(reasons)


def _grouped(values: Tensor, pattern: Pattern) -> Tensor:
    """(out, groups, units of a group, weights of a unit)."""
    if values.ndim != 2 or values.shape[1] % pattern.span:
        raise ValueError(f"expected a weight (out, in) with in a multiple of {pattern.span}, got {tuple(values.shape)}")
    return values.reshape(len(values), -1, pattern.group, pattern.width)
