"""Groups of units, and the groups that one pruning step removes (NViT, Yang et al., CVPR 2023). No model, no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

GROUP_UNIT = 16
"""Units for which the threshold rises by one group."""


def threshold_position(step: int, per_step: int) -> int:
    """Return the position of the threshold among the sorted scores of all groups: `max(0, step * per_step // 16 - 1)`.

    step: number of pruning steps before this one. per_step: units that one step removes in the long run, if all groups
    have 16 units.
    """
    return max(0, step * per_step // GROUP_UNIT - 1)


def unit_groups(scores: Tensor, alive: Tensor, group: int) -> list[Tensor]:
    """Return the units of one axis in groups, the lowest scores first: int64 tensors of indices.

    Units that were removed before come first, then scores decide; of equal scores the lower index comes first. All
    groups have `group` units, but the first holds the rest of the division if there is one: after the removal of any
    number of groups the length of the axis is a multiple of `group`. scores: float (n,), alive: bool (n,).
    """
    by_score = torch.sort(scores, stable=True).indices
    order = by_score[torch.sort(alive[by_score].to(torch.int8), stable=True).indices]
    first = len(order) % group
    parts = [order[:first]] if first else []
    return [*parts, *torch.split(order[first:], group)] if len(order) > first else parts


def removed_units(
    groups: Mapping[str, Sequence[Tensor]], scores: Mapping[str, Tensor], position: int
) -> dict[str, Tensor]:
    """Return the units of each axis whose group is at or below the threshold: int64, only axes that lose some.

    groups: of each axis, from `unit_groups`. scores: of each unit; a group has the sum of its units. position: that of
    the threshold among the sorted scores of all groups; a position beyond the end is the last. The last group of every
    axis stays.
    """
    sums = {axis: [float(scores[axis][one].sum()) for one in found] for axis, found in groups.items()}
    ranked = sorted(value for values in sums.values() for value in values)
    if not ranked:
        return {}
    threshold = ranked[min(position, len(ranked) - 1)]
    chosen = {
        axis: [one for one, value in zip(found[:-1], sums[axis], strict=False) if value <= threshold]
        for axis, found in groups.items()
    }
    return {axis: torch.cat(found) for axis, found in chosen.items() if found}
