"""How many tokens each squeezed block keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Literal

ROUNDINGS = {"ceil": ROUND_CEILING, "floor": ROUND_FLOOR}


@dataclass(frozen=True)
class Count:
    """Patch tokens in front of and behind the squeeze of one block."""

    before: int
    after: int


def token_counts(
    present: Mapping[str, int], blocks: Iterable[str], keep: float, rounding: Literal["ceil", "floor"]
) -> dict[str, Count]:
    """Counts of each block, from what the block before left (EViT's rule; TPS does not publish one).

    present: block name to patch tokens there now. blocks: names in graph order. keep: in (0, 1]. The product is
    exact in the decimal number that the recipe shows: 0.07 of 100 is 7, although `0.07 * 100 > 7` in floats.
    """
    counts: dict[str, Count] = {}
    left = max(present.values(), default=0)
    for block in blocks:
        before = min(left, present[block])
        left = int((Decimal(repr(keep)) * before).to_integral_value(ROUNDINGS[rounding]))
        counts[block] = Count(before, left)
    return counts
