"""The number of patch tokens that each squeezed block keeps, and the checks of `blocks` and `keep_rate`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from vitslim.errors import Problem
from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.anatomy.token_sizes import size_conflict, sizes_are_read_after
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages.token_squeeze import Rounding

ROUNDINGS = {"ceil": ROUND_CEILING, "floor": ROUND_FLOOR}


@dataclass(frozen=True)
class Count:
    """Number of patch tokens before and after the squeezing of one block."""

    before: int
    after: int
    """Without tokens that the method adds."""


def token_counts(
    present: Mapping[str, int], keep_rates: Mapping[str, float], rounding: Rounding, added: int = 0
) -> dict[str, Count]:
    """Return the counts of each block, a fraction of the tokens that the previous one leaves (EViT, ICLR 2022).

    present: block name to its current number of patch tokens. keep_rates: block name, in graph order, to the fraction
    in (0, 1], taken as the decimal number that the recipe shows: 0.07 of 100 is 7, although `0.07 * 100 > 7` in floats.
    added: tokens that the method adds to the kept ones of a block, unless it keeps all; they count in the next one.
    """
    counts: dict[str, Count] = {}
    left = max(present.values(), default=0)
    for block, keep_rate in keep_rates.items():
        before = min(left, present[block])
        after = int((Decimal(repr(keep_rate)) * before).to_integral_value(ROUNDINGS[rounding]))
        counts[block] = Count(before, after)
        left = after + (added if after < before else 0)
    return counts


def planned_counts(
    sketch: ModelSketch, keep_rates: Mapping[int, float], rounding: Rounding, added: int = 0
) -> dict[str, Count]:
    """Return the counts of the blocks at these positions by block name, in graph order."""
    rates = {sketch.blocks[index]: keep_rates[index] for index in sorted(keep_rates)}
    return token_counts({block: patch_tokens(sketch, block) for block in sketch.blocks}, rates, rounding, added)


def planned_start_counts(
    sketch: ModelSketch, blocks: Sequence[int], keep_rate: float | Sequence[float], rounding: Rounding
) -> dict[str, Count]:
    """Return the counts of the blocks at these positions by block name, in graph order; of the tokens at the start.

    keep_rate: the n-th block, from 1, keeps `keep_rate ** n` of the patch tokens before the first one (DynamicViT, Rao
    et al., 2021); a sequence has this fraction of each block, in the order of `blocks`.
    """
    ordered = sorted(blocks)
    rates = [Decimal(repr(keep_rate)) ** n for n in range(1, len(ordered) + 1)] if isinstance(keep_rate, float) else [
        Decimal(repr(rate)) for _, rate in sorted(zip(blocks, keep_rate, strict=True))]  # fmt: skip
    start = left = patch_tokens(sketch, sketch.blocks[ordered[0]])
    counts = {}
    for block, rate in zip(ordered, rates, strict=True):
        counts[sketch.blocks[block]] = Count(left, int((rate * start).to_integral_value(ROUNDINGS[rounding])))
        left = counts[sketch.blocks[block]].after
    return counts


def support_problems(sketch: ModelSketch) -> list[Problem]:
    """Return a problem for a model whose tokens cannot be squeezed."""
    if not sketch.squeeze_obstacle:
        return []
    message = f"token-squeeze does not support this model: {sketch.squeeze_obstacle}"
    return [Problem("method", message, "remove the stage, or use a plain ViT or DeiT")]


def block_problems(sketch: ModelSketch, blocks: Sequence[int], proportional: bool | None = None) -> list[Problem]:
    """Return a problem for an empty list, for blocks that do not exist, are listed twice or already squeezed, and for
    blocks that would lose the sizes of merged tokens.

    proportional: for methods that count sizes, whether later attentions weigh keys by them; None for other methods.
    """
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
    names = {sketch.blocks[index] for index in blocks if index < count}
    return problems or _size_problems(sketch, names, proportional)


def _size_problems(sketch: ModelSketch, names: Collection[str], proportional: bool | None) -> list[Problem]:
    merged = dict(sketch.merged) if proportional is None else {**sketch.merged, **dict.fromkeys(names, proportional)}
    others = {*sketch.squeezed, *names} - merged.keys()
    conflict = size_conflict(sketch.blocks, merged, others)
    hint = "merge tokens after all other squeezing, or set `proportional_attention: false`"
    return [Problem("blocks", sizes_are_read_after(conflict), hint)] if conflict else []


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


def kept_problems(after: ModelGraph, kept: Mapping[str, int]) -> list[Problem]:
    """Return a problem for each block of a squeezed graph that does not leave its number of patch tokens."""
    anatomy = find_anatomy(after)
    problems = []
    for name, count in kept.items():
        block = anatomy.block(name)
        if block is None or block.squeeze is None:
            problems.append(Problem("blocks", f"'{name}' was not squeezed"))
        elif anatomy.shapes[block.squeeze][1] != count + anatomy.prefix_tokens:
            problems.append(Problem("blocks", f"'{name}' does not keep {count} patch tokens"))
    return problems


def patch_tokens(sketch: ModelSketch, block: str) -> int:
    """Return the number of patch tokens after the attention of a block."""
    return sketch.tokens_at(block) - sketch.prefix_tokens
