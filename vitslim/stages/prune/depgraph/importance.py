"""How much each index of an axis matters (DepGraph, section 3 of the specs). Pure tensor mathematics.

An axis occurs in several parameters at once; each occurrence is a member of its group. A member gives every index the
sum of its elements' scores over the slice that would go with the index; the group's score combines its members.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def magnitude_l1(weight: Tensor) -> Tensor:
    """Score of each element by its size: `|w|`. Any shape."""
    return weight.detach().abs()


def magnitude_l2(weight: Tensor) -> Tensor:
    """Score of each element by the square of its size: `w^2`. Any shape."""
    return weight.detach().square()


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Score of each element by the first-order change of the loss when it goes: `|w * g|`. Any shape; float64 out.

    In double precision, because gradients may be so small that the product would vanish.
    """
    return (weight.detach().double() * gradient.detach().double()).abs()


def hessian(weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """Score of each element by the second-order change of the loss when it goes: `w^2 * mean(g^2)`. float64 out.

    squared_gradient: mean over samples of the squared gradient of each sample's loss, which stands for the diagonal of
    the Hessian (optimal brain damage).
    """
    return weight.detach().double().square() * squared_gradient.detach().double()


def slice_sums(elements: Tensor, dim: int) -> Tensor:
    """Sum of element scores over every slice along `dim`: float64 (elements.shape[dim],)."""
    others = [d for d in range(elements.ndim) if d != dim]
    return elements.sum(dim=others, dtype=torch.float64) if others else elements.double()


def member_scores(sums: Tensor, index: Tensor, size: int) -> Tensor:
    """Score that one member gives to each axis index: float64 (size,).

    sums: float64 (n,), the slice sums of the dimension in which the axis occurs. index: int64 (n,), the axis index at
    each position, -1 where the axis does not occur. An index that occurs at several positions (the dims of a head occur
    once a head, a head once a channel) takes their mean.
    """
    present = index >= 0
    where = index[present]
    total = torch.zeros(size, dtype=torch.float64, device=sums.device).index_add_(0, where, sums[present])
    return total / torch.bincount(where, minlength=size).clamp(min=1)


def group_scores(members: Sequence[Tensor]) -> Tensor:
    """Return the mean of the scores of a group's members: float64 (size,). members: at least one tensor (size,)."""
    return torch.stack(list(members)).mean(dim=0)


def normalized(scores: Tensor) -> Tensor:
    """Return the scores of one group divided by their mean, so that groups compare. Zeros stay zeros. (size,)."""
    scale = scores.mean()
    return scores / scale if scale > 0 else scores


def lamp(scores: Tensor) -> Tensor:
    """Each score divided by the sum of all scores that are not smaller: in (0, 1], 1 for the largest. (size,).

    Layer-adaptive magnitude pruning (Lee et al., ICLR 2021) of a group's squared magnitudes. Of equal scores the later
    one counts as larger. All zeros stay zeros.
    """
    ordered, order = torch.sort(scores, stable=True)
    not_smaller = ordered.flip(0).cumsum(0).flip(0)
    result = torch.zeros_like(scores)
    result[order] = torch.where(not_smaller > 0, ordered / not_smaller.clamp(min=torch.finfo(scores.dtype).tiny), 0.0)
    return result
