"""Which weights vote on the indices of an axis, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.graph.axes import Axis
from vitslim.stages.prune.depgraph.importance import group_scores, member_scores, slice_sums

ElementScores = Callable[[str, Tensor], Tensor]
"""Scores of the elements of a parameter, by its name and value: same shape."""


@dataclass(frozen=True)
class Member:
    """One dimension of a weight that votes on an axis."""

    axis: str
    size: int
    """Of the axis."""
    parameter: str
    dim: int
    index: Tensor
    """int64 (length of the dimension,): the axis index at each position, -1 where the axis does not occur."""


def find_members(axes: Iterable[Axis], parameters: Mapping[str, Tensor]) -> list[Member]:
    """The weights of linears, convolutions and norms in which the axes occur.

    Biases, tokens, position embeddings and layer scales follow a cut without a vote (DepGraph, section 3).
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
    """Score of each index by axis name: float64 (axis size,), not yet normalized. The elements of a parameter are
    scored once."""
    by_parameter: dict[str, list[Member]] = {}
    for member in members:
        by_parameter.setdefault(member.parameter, []).append(member)
    votes: dict[str, list[Tensor]] = {}
    for name, here in by_parameter.items():
        scored = elements(name, parameters[name])
        sums = {dim: slice_sums(scored, dim) for dim in {member.dim for member in here}}
        for member in here:
            vote = member_scores(sums[member.dim], member.index, member.size)
            votes.setdefault(member.axis, []).append(vote)
    return {axis: group_scores(found) for axis, found in votes.items()}
