"""How much each index of an axis matters (DepGraph, section 3 of the specs). Pure tensor mathematics.

An axis occurs in several parameters at once; each occurrence is a member of its group. A member gives every index the
sum of its elements' scores over the slice that would go with the index; the group's score is the mean over members.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def magnitude_l2(weight: Tensor) -> Tensor:
    """Score of each element by its size: `w^2`. Any shape; float64 out."""
    return weight.detach().double().square()


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Score of each element by the first-order change of the loss when it goes: `|w * g|`. Any shape; float64 out."""
    return (weight.detach().double() * gradient.detach().double()).abs()


def slice_sums(elements: Tensor, dim: int) -> Tensor:
    """Sum of element scores over every slice along `dim`: float64 (elements.shape[dim],)."""
    others = [d for d in range(elements.ndim) if d != dim]
    return elements.double().sum(dim=others) if others else elements.double()


def member_scores(sums: Tensor, index: Tensor, size: int) -> Tensor:
    """Score that one member gives to each axis index: float64 (size,).

    sums: float64 (n,), the slice sums of the dimension in which the axis occurs. index: int64 (n,), the axis index at
    each position, -1 where the axis does not occur. An index that occurs at several positions (the dims of a head occur
    once a head) collects them all.
    """
    present = index >= 0
    return torch.zeros(size, dtype=torch.float64).index_add_(0, index[present], sums[present])


def group_scores(members: Sequence[Tensor]) -> Tensor:
    """Mean over the members, then divided by the mean over the indices: float64 (size,), mean 1.

    members: at least one tensor (size,). When all scores are zero they stay zero.
    """
    scores = torch.stack(list(members)).mean(dim=0)
    mean = scores.mean()
    return scores / mean if mean > 0 else scores
