"""Groups of coupled weights, which lose a slice with each index of an axis (DepGraph, Fang et al., CVPR 2023).

An axis occurs in several parameters at once; each occurrence is a member of its group. A member gives every index the
sum of its elements' scores over the slice that is removed with the index. The group's score is the mean of its members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.graph.axes import Axis

ElementScores = Callable[[str, Tensor], Tensor]
"""Scores of the elements of a parameter, from its name and value: same shape."""


@dataclass(frozen=True)
class Member:
    """One dimension of a weight in which an axis occurs."""

    axis: str
    size: int
    """Length of the axis."""
    parameter: str
    dim: int
    index: Tensor
    """int64 (length of the dimension,): the axis index at each position, -1 where the axis does not occur."""


def find_members(axes: Iterable[Axis], parameters: Mapping[str, Tensor]) -> list[Member]:
    """Return the weights of linear layers, convolutions and norms in which the axes occur.

    Biases, tokens, position embeddings and layer scales are cut with the axis but do not contribute to its score.
    """
    return [
        Member(axis.name, axis.size, site.parameter, site.dim, torch.from_numpy(site.index))
        for axis in axes
        for site in axis.sites
        if site.parameter in parameters and site.parameter.rpartition(".")[2] == "weight"
    ]


def axis_scores(
    members: Iterable[Member], parameters: Mapping[str, Tensor], elements: ElementScores
) -> dict[str, Tensor]:
    """Return the score of each index by axis name: float64 (axis size,), not normalized.

    The elements of a parameter are scored once, however many axes occur in it.
    """
    by_parameter: dict[str, list[Member]] = {}
    for member in members:
        by_parameter.setdefault(member.parameter, []).append(member)
    of_members: dict[str, list[Tensor]] = {}
    for name, here in by_parameter.items():
        scored = elements(name, parameters[name])
        sums = {dim: slice_sums(scored, dim) for dim in {member.dim for member in here}}
        for member in here:
            scores = member_scores(sums[member.dim], member.index, member.size)
            of_members.setdefault(member.axis, []).append(scores)
    return {axis: group_scores(found) for axis, found in of_members.items()}


def slice_sums(elements: Tensor, dim: int) -> Tensor:
    """Return the sum of element scores over every slice along `dim`: float64 (elements.shape[dim],)."""
    others = [d for d in range(elements.ndim) if d != dim]
    return elements.sum(dim=others, dtype=torch.float64) if others else elements.double()


def member_scores(sums: Tensor, index: Tensor, size: int) -> Tensor:
    """Return the score that one member gives to each axis index: float64 (size,).

    sums: float64 (n,), the slice sums of the dimension in which the axis occurs. index: int64 (n,), the axis index at
    each position, -1 where the axis does not occur. An index that occurs at several positions takes their mean: the
    dimensions of a head occur once in each head, a head once in each of its channels.
    """
    present = index >= 0
    where = index[present]
    total = torch.zeros(size, dtype=torch.float64, device=sums.device).index_add_(0, where, sums[present])
    return total / torch.bincount(where, minlength=size).clamp(min=1)


def group_scores(members: Sequence[Tensor]) -> Tensor:
    """Return the mean of the scores of a group's members: float64 (size,). members: at least one tensor (size,)."""
    return torch.stack(list(members)).mean(dim=0)


def normalized(scores: Tensor) -> Tensor:
    """Return the scores (size,) of one group divided by their mean, so that groups compare. Zeros stay zeros."""
    scale = scores.mean()
    return scores / scale if scale > 0 else scores
