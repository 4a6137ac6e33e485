"""Indices of several axes ranked together: scores decide how long each axis stays (DepGraph, section 4)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from vitslim.graph.axes import Axis
from vitslim.stages.prune.depgraph.budget import Lengths, Schedule
from vitslim.stages.prune.depgraph.targets import Target

BLOCK_NUMBER = re.compile(r"^.*\.\d+\.")
"""The path of a parameter up to its last number."""


@dataclass(frozen=True)
class _Queue:
    """The indices of one rank list that may go, the least important first."""

    targets: tuple[Target, ...]
    present: Tensor
    """int64 (targets,): how many indices each axis has now."""
    order: Tensor
    """int64 (indices that may go,): position of the target that loses one."""

    def lengths(self, factor: float) -> Lengths:
        """What stays of each axis when the list loses its ratio times `factor` of what it had at first."""
        wanted = sum(target.size for target in self.targets)
        stay = floor(wanted * max(0.0, 1 - self.targets[0].ratio * factor))
        goes = max(0, int(self.present.sum()) - stay)
        lost = torch.bincount(self.order[:goes], minlength=len(self.targets))
        return {
            target.axis: _on_grid(target, int(now), int(gone))
            for target, now, gone in zip(self.targets, self.present, lost, strict=True)
        }


def ranked_schedule(targets: Iterable[Target], scores: Mapping[str, Tensor], lists: Mapping[str, Hashable]) -> Schedule:
    """Lengths for a factor on the ratios when axes of one list lose their least important indices together.

    scores: (present size,) by axis, comparable between axes; equal scores go in the order of the axes. lists: axis
    name to its rank list; axes of different ratios never share one. A list loses its ratio times the factor of the
    indices that its axes had at first, whatever earlier steps took; then every axis is rounded down to its step. No
    axis loses more than its target allows.
    """
    together: dict[Hashable, list[Target]] = {}
    for target in targets:
        together.setdefault((lists[target.axis], target.ratio), []).append(target)
    queues = [_queue(members, scores) for members in together.values()]
    return lambda factor: {axis: length for queue in queues for axis, length in queue.lengths(factor).items()}


def list_of(axis: Axis, scope: str) -> Hashable:
    """The rank list of an axis: equal for axes whose indices compete. `scope` is global or isomorphic.

    Heads compete with heads alone: one of them is as much as many indices of other kinds.
    """
    return axis.kind == "heads" if scope == "global" else pattern_of(axis)


def pattern_of(axis: Axis) -> Hashable:
    """Equal for axes that couple layers in the same way: their kind, and where they occur inside their blocks."""
    roles = sorted((BLOCK_NUMBER.sub("", site.parameter), site.dim) for site in axis.sites)
    return axis.kind, tuple(roles)


def _queue(targets: Sequence[Target], scores: Mapping[str, Tensor]) -> _Queue:
    # An axis that is down to one index is no axis any more and has no score.
    own = [torch.sort(scores.get(t.axis, torch.zeros(1)).double(), stable=True).values for t in targets]
    free = [values[: max(0, len(values) - target.least)] for values, target in zip(own, targets, strict=True)]
    owner = torch.repeat_interleave(torch.arange(len(targets)), torch.tensor([len(values) for values in free]))
    order = torch.sort(torch.cat(free), stable=True).indices
    return _Queue(tuple(targets), torch.tensor([len(values) for values in own]), owner[order])


def _on_grid(target: Target, present: int, lost: int) -> int:
    if lost == 0:
        return present
    return max(target.least, (present - lost) // target.step * target.step)
