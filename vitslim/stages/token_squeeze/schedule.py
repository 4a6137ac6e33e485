"""The number of patch tokens that each squeezed block keeps, and the checks of `blocks` and `keep_rate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Literal

from vitslim.errors import Problem
from vitslim.graph.sketch import ModelSketch

Rounding = Literal["ceil", "floor"]
ROUNDINGS = {"ceil": ROUND_CEILING, "floor": ROUND_FLOOR}


@dataclass(frozen=True)
class Count:
    """Number of patch tokens before and after the squeezing of one block."""

    before: int
    after: int


def token_counts(
    present: Mapping[str, int], blocks: Iterable[str], keep_rate: float, rounding: Rounding
) -> dict[str, Count]:
    """Return the counts of each block, a fraction of the tokens that the previous one keeps (EViT, Liang et al., 2022).

    present: block name to its current number of patch tokens. blocks: names in graph order. keep_rate: in (0, 1], taken
    as the decimal number that the recipe shows: 0.07 of 100 is 7, although `0.07 * 100 > 7` in floats.
    """
    counts: dict[str, Count] = {}
    left = max(present.values(), default=0)
    for block in blocks:
        before = min(left, present[block])
        left = int((Decimal(repr(keep_rate)) * before).to_integral_value(ROUNDINGS[rounding]))
        counts[block] = Count(before, left)
    return counts


def planned_counts(
    sketch: ModelSketch, blocks: Iterable[int], keep_rate: float, rounding: Rounding
) -> dict[str, Count]:
    """Return the counts of the blocks at these positions by block name, in graph order."""
    names = [sketch.blocks[index] for index in sorted(blocks)]
    return token_counts({block: patch_tokens(sketch, block) for block in sketch.blocks}, names, keep_rate, rounding)


def block_problems(sketch: ModelSketch, blocks: Sequence[int]) -> list[Problem]:
    """Return a problem for an empty list, and for blocks that do not exist, are listed twice or already squeezed."""
    count = len(sketch.blocks)
    problems = [
        Problem(
            "blocks",
            f"block {index} does not exist: the model has {count} blocks, 0 to {count - 1}",
            "remove it from `blocks`",
        )
        for index in blocks
        if index >= count
    ]
    if not blocks:
        problems.append(Problem("blocks", "the list is empty", "list positions of blocks, such as [3, 6, 9]"))
    if len(set(blocks)) < len(blocks):
        problems.append(Problem("blocks", "a block is listed twice", "list each block once"))
    problems += [
        Problem("blocks", f"block {index} is already squeezed by an earlier stage", "squeeze each block once")
        for index in blocks
        if index < count and sketch.blocks[index] in sketch.squeezed
    ]
    return problems


def count_problems(sketch: ModelSketch, counts: Mapping[str, Count]) -> list[Problem]:
    """Return a problem for each block that would keep no token, or fewer than a later squeezed block keeps."""
    problems = []
    for name, count in counts.items():
        later = sketch.blocks[sketch.blocks.index(name) + 1 :]
        needed = max((patch_tokens(sketch, block) for block in later if block in sketch.squeezed), default=0)
        if count.after < max(1, needed):
            reason = f"but a later block keeps {needed}" if needed else "expected at least 1"
            message = f"'{name}' would keep {count.after} of {count.before} patch tokens, {reason}"
            problems.append(Problem("keep_rate", message, "raise keep_rate"))
    return problems


def patch_tokens(sketch: ModelSketch, block: str) -> int:
    """Return the number of patch tokens after the attention of a block."""
    return sketch.tokens_at(block) - sketch.prefix_tokens
