"""The matmuls of token merging (ToMe, DiffRate), for the sketch of a graph and for estimates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitslim.graph.edits.merge_tokens import KeptTokens
from vitslim.graph.sketch.matmul import Matmul
from vitslim.graph.sketch.size import ONE, Size
from vitslim.graph.sketch.token_matmuls import ROLE, SqueezeMatmuls, TokenCut, score_matmuls

if TYPE_CHECKING:
    from vitslim.graph.sketch.model_sketch import ModelSketch


def mean_keys(block: str, heads: Size, head_width: Size, tokens: Size) -> tuple[Matmul, ...]:
    """Mean of the keys over heads (ToMe)."""
    return (Matmul(f"{block}.mean_keys", ONE, ONE, heads, head_width * tokens, "", block, ROLE),)


def match_alternate(block: str, head_width: Size, tokens: int, prefix: int) -> tuple[Matmul, ...]:
    """Similarity of the patch tokens at even positions to those at odd ones (ToMe)."""
    even, odd = alternate_positions(tokens, prefix)
    return (Matmul(f"{block}.similarity", ONE, Size.of(even), head_width, Size.of(odd), "", block, ROLE),)


def match_ranked(block: str, width: Size, merged: int, keep: int) -> tuple[Matmul, ...]:
    """Similarity of the merged patch tokens to those that stay (DiffRate)."""
    found = Matmul(f"{block}.similarity", ONE, Size.of(merged), width, Size.of(keep), "", block, ROLE)
    return (found,) if merged else ()


def merge(block: str, width: Size, merged: int, hosts: int) -> tuple[Matmul, ...]:
    """Sum of the tokens that each host takes, weighted by size."""
    found = Matmul(f"{block}.fusion", ONE, Size.of(hosts), Size.of(merged), width, "", block, ROLE)
    return (found,) if merged else ()


def alternate_positions(tokens: int, prefix: int) -> tuple[int, int]:
    """Return the numbers of even and of odd positions from `prefix` to `tokens`."""
    even = (tokens + 1) // 2 - (prefix + 1) // 2
    return even, tokens - prefix - even


def merge_cuts(
    sketch: ModelSketch, method: str, counts: Mapping[str, KeptTokens], proportional: bool
) -> dict[str, TokenCut]:
    """Return the cuts of `tome` or `diffrate`: block name to its counts. Blocks that keep all tokens have none."""
    cuts: dict[str, TokenCut] = {}
    merging, left = bool(sketch.merged), max(map(sketch.tokens_at, sketch.token_axes), default=0)
    for block in (name for name in sketch.blocks if name in counts):
        survivors, keep = counts[block]
        before = min(left, sketch.tokens_at(block))
        left = sketch.prefix_tokens + keep
        if left < before:
            merging = merging or keep < survivors
            matmuls = (
                _tome(before, left, sketch.prefix_tokens) if method == "tome" else _diffrate(sketch, survivors, keep)
            )
            cuts[block] = TokenCut(keep, matmuls, proportional=proportional if merging else None)
    return cuts


def _tome(before: int, after: int, prefix: int) -> tuple[SqueezeMatmuls, ...]:
    _, odd = alternate_positions(before, prefix)
    return (
        lambda s: mean_keys(s.block, s.heads, s.head_width, s.tokens),
        lambda s: match_alternate(s.block, s.head_width, before, prefix),
        lambda s: merge(s.block, s.width, before - after, odd),
    )


def _diffrate(sketch: ModelSketch, survivors: int, keep: int) -> tuple[SqueezeMatmuls, ...]:
    return (
        score_matmuls(sketch.has_class_token),
        lambda s: match_ranked(s.block, s.width, survivors - keep, keep),
        lambda s: merge(s.block, s.width, survivors - keep, keep),
    )
