"""Which token each operator with `Trait.SQUEEZE` keeps, drops, or fuses into which other token.

`DECISIONS` has one function per operator, with the arguments of the operator. It calls the functions by which the
operator itself selects and matches tokens. Patch tokens are counted from 0 after the prefix tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vitslim.graph.ops.merge import MERGE_ALTERNATE, MERGE_RANKED, first_odd, match_parts
from vitslim.graph.ops.selection import TAKE_ROWS
from vitslim.graph.ops.squeeze import (
    FUSE_INATTENTIVE,
    KEEP_TOKENS,
    SQUEEZE_TOKENS,
    best_matches,
    split_by_score,
)

NONE = -1
"""In place of the position of a token that does not exist."""


@dataclass(frozen=True)
class TokenDecision:
    """The way of all patch tokens through one operator that takes N and returns M of them."""

    origin: Tensor
    """int64 (B, M): position before the operator of each token after it; `NONE` for a token that the operator adds."""
    destination: Tensor
    """int64 (B, N): position after the operator of the token that each token became or was fused into; `NONE` for a
    dropped token."""


def squeezed(x: Tensor, score: Tensor, keep: int) -> TokenDecision:
    """Return the decision of `squeeze_tokens`. Of several equally similar hosts it names the first."""
    patches = score.shape[1]
    kept, removed = split_by_score(score, keep)
    tokens = x[:, x.shape[1] - patches :]
    _, matched = best_matches(TAKE_ROWS(tokens, kept), TAKE_ROWS(tokens, removed))
    return decision(patches, kept, removed, matched.to(torch.uint8).argmax(dim=2))


def dropped(x: Tensor, score: Tensor, keep: int) -> TokenDecision:  # noqa: ARG001 - arguments of the operator
    """Return the decision of `keep_tokens`."""
    kept, removed = split_by_score(score, keep)
    return decision(score.shape[1], kept, removed[:, :0], removed[:, :0])


def fused(x: Tensor, score: Tensor, keep: int) -> TokenDecision:  # noqa: ARG001 - arguments of the operator
    """Return the decision of `fuse_inattentive`: all removed tokens become the last token."""
    kept, removed = split_by_score(score, keep)
    with_added = torch.cat([kept, torch.full_like(kept[:, :1], NONE)], dim=1)
    return decision(score.shape[1], with_added, removed, torch.full_like(removed, keep))


def merged_alternate(x: Tensor, match: Tensor, sizes: Tensor, merged_sizes: Tensor, prefix: int) -> TokenDecision:  # noqa: ARG001 - arguments of the operator
    """Return the decision of `merge_alternate`: the tokens that stay come first, then all hosts."""
    stay, gone, host = match_parts(match, x.shape[1] - merged_sizes.shape[1])
    odd = torch.arange(first_odd(prefix), x.shape[1], 2, device=x.device).expand(x.shape[0], -1)
    origin = torch.cat([stay, odd], dim=1) - prefix
    return decision(x.shape[1] - prefix, origin, gone - prefix, host + stay.shape[1])


def merged_ranked(x: Tensor, match: Tensor, sizes: Tensor, merged_sizes: Tensor, prefix: int) -> TokenDecision:  # noqa: ARG001 - arguments of the operator
    """Return the decision of `merge_ranked`: tokens that are in no part of the match are dropped."""
    keep = merged_sizes.shape[1] - prefix
    stay, gone, host = match_parts(match, (match.shape[1] - keep) // 2)
    return decision(x.shape[1] - prefix, stay - prefix, gone - prefix, host)


def decision(patches: int, origin: Tensor, guests: Tensor, hosts: Tensor) -> TokenDecision:
    """Return the decision of an operator that takes `patches` tokens and drops all that are neither kept nor guests.

    origin: int64 (B, M), position before the operator of each token after it, or `NONE`. guests: int64 (B, m),
    positions before the operator of the tokens that are fused into others. hosts: int64 (B, m), position after the
    operator of the token that each guest is fused into.
    """
    batch, after = origin.shape
    # Tokens that the operator adds have no position before it: a last column takes theirs and is cut off.
    destination = origin.new_full((batch, patches + 1), NONE)
    places = torch.arange(after, device=origin.device).expand(batch, -1)
    destination.scatter_(1, torch.where(origin == NONE, patches, origin), places)
    destination.scatter_(1, guests, hosts)
    return TokenDecision(origin, destination[:, :patches])


DECISIONS: Mapping[Any, Callable[..., TokenDecision]] = MappingProxyType(
    {
        SQUEEZE_TOKENS: squeezed,
        KEEP_TOKENS: dropped,
        FUSE_INATTENTIVE: fused,
        MERGE_ALTERNATE: merged_alternate,
        MERGE_RANKED: merged_ranked,
    }
)
"""Operator to its decision function."""
