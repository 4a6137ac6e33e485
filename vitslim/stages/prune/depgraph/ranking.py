"""Joint ranking of the indices of several axes: the scores decide the length of each axis."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from vitslim.graph.axes import Axis
from vitslim.stages.prune.depgraph.budget import Schedule
from vitslim.stages.prune.depgraph.targets import Target
from vitslim.stages.prune.model_costs import Lengths

BLOCK_NUMBER = re.compile(r"^.*\.\d+\.")
"""The path of a parameter up to its last number."""


@dataclass(frozen=True)
class _Queue:
    """The removable indices of one rank list, the least important first."""

    targets: tuple[Target, ...]
    present: Tensor
    """int64 (targets,): current number of indices of each axis."""
    order: Tensor
    """int64 (removable indices,): position of the target that each belongs to."""

    def lengths(self, factor: float) -> Lengths:
        """Return the length of each axis when the list loses its ratio times `factor` of its original indices."""
        original = sum(target.size for target in self.targets)
        kept = floor(original * max(0.0, 1 - self.targets[0].ratio * factor))
        count = max(0, int(self.present.sum()) - kept)
        removed = torch.bincount(self.order[:count], minlength=len(self.targets))
        return {
            target.axis: _on_grid(target, int(present), int(lost))
            for target, present, lost in zip(self.targets, self.present, removed, strict=True)
        }


def ranked_schedule(targets: Iterable[Target], scores: Mapping[str, Tensor], lists: Mapping[str, Hashable]) -> Schedule:
    """Return the schedule by which the axes of one list lose their least important indices together.

    scores: (current size,) by axis, comparable between axes; equal scores are removed in the order of the axes. lists:
    axis name to its rank list; axes of different ratios never share one. A list loses its ratio times the factor of the
    original indices of its axes, including those that earlier steps removed; then every axis is rounded down to its
    step. No axis loses more than its target allows.
    """
    together: dict[Hashable, list[Target]] = {}
    for target in targets:
        together.setdefault((lists[target.axis], target.ratio), []).append(target)
    queues = [_queue(members, scores) for members in together.values()]
    return lambda factor: {axis: length for queue in queues for axis, length in queue.lengths(factor).items()}


def list_of(axis: Axis, scope: str) -> Hashable:
    """Return the rank list of an axis, equal for axes that are ranked together. `scope` is global or isomorphic.

    Heads are ranked among heads only, because one head holds as many weights as many indices of other kinds.
    """
    return axis.kind == "heads" if scope == "global" else pattern_of(axis)


def pattern_of(axis: Axis) -> Hashable:
    """Return a key that is equal for axes that couple layers in the same way: kind, and places inside the block."""
    roles = sorted((BLOCK_NUMBER.sub("", site.parameter), site.dim) for site in axis.sites)
    return axis.kind, tuple(roles)


def _queue(targets: Sequence[Target], scores: Mapping[str, Tensor]) -> _Queue:
    # An axis of a single index is no longer an axis of the graph and has no score.
    own = [torch.sort(scores.get(t.axis, torch.zeros(1)).double(), stable=True).values for t in targets]
    free = [values[: max(0, len(values) - target.least)] for values, target in zip(own, targets, strict=True)]
    owner = torch.repeat_interleave(torch.arange(len(targets)), torch.tensor([len(values) for values in free]))
    order = torch.sort(torch.cat(free), stable=True).indices
    return _Queue(tuple(targets), torch.tensor([len(values) for values in own]), owner[order])


def _on_grid(target: Target, present: int, lost: int) -> int:
    if lost == 0:
        return present
    return max(target.least, (present - lost) // target.step * target.step)
