"""N:M sparsity patterns: of every M adjacent weights along the reduction dimension, N are kept.

Pure tensor mathematics, no model. A weight is always seen as (out, in): groups run along `in`. `2:4` keeps two of four
weights (Mishra et al., 2021), `N:M` any N of M, and `2:4-pairs`, the pattern of sparse tensor cores at INT4, two of
four adjacent pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitslim.sparsity import Pattern

OUT_MULTIPLE = 8
IN_MULTIPLE = 16
"""Sparse kernels need layer sizes that are multiples of these."""


TWO_OF_FOUR = Pattern(2, 4)


def pattern_mask(score: Tensor, pattern: Pattern = TWO_OF_FOUR) -> Tensor:
    """Return the mask that keeps the weights with the largest scores of each group: bool, same shape as `score`.

    score: float (out, in), not negative, `in` a multiple of the pattern's span; a unit of several weights has the sum
    of theirs. Of equal scores the lower index is kept, so the mask depends on the scores alone. No other mask of the
    pattern keeps a larger sum of scores. Raises ValueError for another shape.
    """
    units = _grouped(score, pattern).sum(dim=-1)
    order = torch.sort(units, dim=-1, descending=True, stable=True).indices
    chosen = torch.zeros_like(units, dtype=torch.bool).scatter_(-1, order[..., : pattern.kept], True)
    return chosen[..., None].expand(*units.shape, pattern.width).reshape(score.shape)


def keeps_pattern(mask: Tensor, pattern: Pattern) -> bool:
    """Whether a bool mask (out, in) keeps the pattern's number of units in each group along `in`, each unit whole."""
    grouped = _grouped(mask, pattern)
    whole = grouped.all(dim=-1)
    return bool((whole == grouped.any(dim=-1)).all() and (whole.sum(dim=-1) == pattern.kept).all())


def obstacles(out_features: int, in_features: int, pattern: Pattern = TWO_OF_FOUR) -> str:
    """Return all reasons why a layer of this size cannot have the pattern; empty when it can."""
    reasons = []
    step = math.lcm(IN_MULTIPLE, pattern.span)
    if out_features % OUT_MULTIPLE:
        reasons.append(f"{out_features} outputs are not a multiple of {OUT_MULTIPLE}")
    if in_features % step:
        reasons.append(f"{in_features} inputs are not a multiple of {step}")
    return " and ".join(reasons)


def _grouped(values: Tensor, pattern: Pattern) -> Tensor:
    """Return values as (out, groups, units of a group, weights of a unit)."""
    if values.ndim != 2 or values.shape[1] % pattern.span:
        raise ValueError(f"expected a weight (out, in) with in a multiple of {pattern.span}, got {tuple(values.shape)}")
    return values.reshape(len(values), -1, pattern.group, pattern.width)
