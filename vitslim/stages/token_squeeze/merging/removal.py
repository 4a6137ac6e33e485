"""The number of patch tokens that each block merges (ToMe, Bolya et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from vitslim.graph.edits.merge_tokens import KeptTokens


@dataclass(frozen=True)
class Removal:
    """Merged patch tokens of one block."""

    before: int
    requested: int
    merged: int
    """At most half of the patch tokens."""

    @property
    def kept(self) -> KeptTokens:
        """The patch tokens that are left; none is dropped without merging."""
        return KeptTokens(self.before, self.before - self.merged)


def removal_schedule(remove: int, blocks: int, decrease: bool) -> tuple[int, ...]:
    """Return the number of tokens that each of `blocks` blocks shall merge, `remove * blocks` in all.

    The same in each block; or with `decrease` linearly from 2 * remove in the first one to 0 in the last, where sums
    over the first blocks are rounded, so that the total is exact.
    """
    if not decrease or blocks == 1:
        return (remove,) * blocks
    last = blocks - 1
    # 2 * remove * (last - i) / last, summed over i < n; halves are rounded up
    sums = [(2 * remove * n * (2 * last - n + 1) + last) // (2 * last) for n in range(blocks + 1)]
    return tuple(after - before for before, after in pairwise(sums))


def removals(present: Mapping[str, int], requested: Mapping[str, int]) -> dict[str, Removal]:
    """Return the merged tokens of each block, of those that the blocks before leave.

    present: block name, in graph order, to its current number of patch tokens. requested: block name to the number of
    tokens to merge; a block merges at most half of its patch tokens.
    """
    found: dict[str, Removal] = {}
    left = max(present.values(), default=0)
    for block, tokens in present.items():
        left = min(left, tokens)
        if block in requested:
            found[block] = Removal(left, requested[block], min(requested[block], left // 2))
            left -= found[block].merged
    return found
