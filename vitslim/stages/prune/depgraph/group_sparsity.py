"""Group-sparsity training: weak groups are pushed towards zero before they are cut (DepGraph, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from vitslim.stages.prune.depgraph.groups import Member, axis_scores
from vitslim.stages.prune.depgraph.importance import magnitude_l2


def group_strengths(scores: Tensor, alpha: float) -> Tensor | None:
    """How hard each index is pushed: `2^(alpha * (I_max - I_k) / (I_max - I_min))` with `I = sqrt(scores)`.

    scores: (size,), not negative. 1 for the strongest index, 2^alpha for the weakest. None when all scores are equal or
    one is no finite number: then nothing says which index is weak.
    """
    importance = scores.sqrt()
    spread = importance.max() - importance.min()
    if not torch.isfinite(importance).all() or spread <= 0:
        return None
    return torch.exp2(alpha * (importance.max() - importance) / spread)


def push(weight: Tensor, strengths: Sequence[tuple[int, Tensor]], gamma: float) -> Tensor:
    """What is added to the gradient of a weight: `gamma * gamma_k * w`, summed over the groups it is a member of.

    strengths: for each membership the dimension, and the strength at each position of it, (weight.shape[dim],).
    """
    total = torch.zeros((), dtype=weight.dtype)
    for dim, strength in strengths:
        shape = [-1 if d == dim else 1 for d in range(weight.ndim)]
        total = total + strength.to(weight.dtype).view(shape)
    return gamma * total * weight


def pusher(
    members: Sequence[Member], parameters: Mapping[str, nn.Parameter], gamma: float, alpha: float
) -> Callable[[], None]:
    """A function to call after each backward pass: it adds the push to the gradients of all members.

    Groups are scored afresh by the magnitude of their weights each time.
    """

    def add() -> None:
        with torch.no_grad():
            scores = axis_scores(members, parameters, lambda _, weight: magnitude_l2(weight))
            strengths = {axis: group_strengths(values, alpha) for axis, values in scores.items()}
            for name, here in _by_parameter(members).items():
                weight = parameters[name]
                found = [(m.dim, _at_positions(s, m.index)) for m in here if (s := strengths[m.axis]) is not None]
                if found and weight.grad is not None:
                    weight.grad.add_(push(weight.detach(), found, gamma))

    return add


def _at_positions(strength: Tensor, index: Tensor) -> Tensor:
    """The strength of the index at each position; zero where the axis does not occur."""
    return torch.where(index >= 0, strength[index.clamp(min=0)], 0.0)


def _by_parameter(members: Iterable[Member]) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for member in members:
        found.setdefault(member.parameter, []).append(member)
    return found
