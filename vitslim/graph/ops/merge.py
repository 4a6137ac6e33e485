"""Merging of tokens into similar ones (ToMe, ICLR 2023, arXiv 2210.09461; DiffRate, ICCV 2023, arXiv 2305.17997).

Each operator is one node in a graph and a composite of ordinary operators with constant counts and a free batch size.
A block has three of them: a *match*, which decides which tokens stay, which are merged and into which; the tokens that
result; and their sizes, the number of original tokens in each. `size_bias` lets a later attention weigh keys by size.

A match is int64 (B, n + 2m): positions of n tokens that stay, positions of m tokens that are merged, and the host of
each merged token, counted among the tokens that can be hosts. Prefix tokens (class token, distillation token,
registers) are in no match: they stay, first and in order, and are neither merged nor hosts.

Multiply-accumulates for one image, with m merged tokens of width C: matching Na*Nb*d for Na and Nb patch tokens at even
and odd positions and keys of width d (ToMe), or m*Nr*C for Nr kept patch tokens (DiffRate); merging m*Nb*C or m*Nr*C.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library

from vitslim.graph.ops.selection import HIGHEST, TAKE_ROWS, unit_vectors


def match_alternate(keys: Tensor, prefix: int, keep: int) -> Tensor:
    """Match patch tokens at even positions with the most similar ones at odd positions; choose the best pairs (ToMe).

    keys: (B, H, P + N, d) float of the attention of the block; positions count the P prefix tokens. Tokens are compared
    by the cosine of their keys, averaged over heads. keep: patch tokens after merging; the N - keep most similar pairs
    are merged. Returns int64 (B, n + 2m) with m = N - keep: even positions that stay, ascending; even positions that
    are merged; for each its host, counted among the odd positions. Of equal similarities the pair with the lower even
    position is merged, and the lower odd position is the host. Raises ValueError unless 1 <= m <= N / 2.
    """
    tokens = keys.shape[2]
    merged = tokens - prefix - keep
    if not 1 <= merged <= (tokens - prefix) // 2:
        raise ValueError(
            f"cannot merge {merged} of {tokens - prefix} patch tokens: at least 1 and at most half of them"
        )
    unit = unit_vectors(_mean_over_heads(keys))
    even, odd = _first_even(prefix), first_odd(prefix)
    similarity = torch.matmul(unit[:, even::2], unit[:, odd::2].transpose(1, 2))
    pairs = similarity.shape[1]
    order = HIGHEST(similarity.amax(dim=2), pairs)
    gone = order[:, :merged]
    host = TAKE_ROWS(similarity, gone).argmax(dim=2)
    positions = torch.arange(even, tokens, 2, device=keys.device)
    if merged == pairs:
        return torch.cat([positions[gone], host], dim=1)
    stay = torch.topk(order[:, merged:], pairs - merged, dim=1, largest=False)[0]
    return torch.cat([positions[stay], positions[gone], host], dim=1)


def merge_alternate(x: Tensor, match: Tensor, sizes: Tensor, merged_sizes: Tensor, prefix: int) -> Tensor:
    """Return prefix tokens, even positions that stay, and odd positions with the tokens merged into them (ToMe).

    x: (B, T, C) float. match: of `match_alternate`. sizes: (B, T), of x. merged_sizes: (B, T'), of the result. A host
    and its guests become their mean, weighted by size; other tokens do not change. Returns (B, T', C).
    """
    hosts = x[:, first_odd(prefix) :: 2]
    count = hosts.shape[1]
    stay, gone, host = match_parts(match, x.shape[1] - merged_sizes.shape[1])
    own, guests = sizes[:, first_odd(prefix) :: 2], torch.gather(sizes, 1, gone)
    merged = _mean(hosts, own, TAKE_ROWS(x, gone), guests, host, merged_sizes[:, -count:])
    return _joined(x, prefix, stay, merged)


def alternate_sizes(sizes: Tensor, match: Tensor, prefix: int, keep: int) -> Tensor:
    """Return the sizes of the tokens of `merge_alternate`: (B, P + N) to (B, P + keep); their sum does not change."""
    stay, gone, host = match_parts(match, sizes.shape[1] - prefix - keep)
    own = sizes[:, first_odd(prefix) :: 2]
    hosts = own.scatter_add(1, host, torch.gather(sizes, 1, gone))
    return torch.cat([sizes[:, :prefix], torch.gather(sizes, 1, stay), hosts], dim=1)


def match_ranked(x: Tensor, score: Tensor, survivors: int, keep: int) -> Tensor:
    """Drop the tokens with the lowest scores, and match the next ones with the most similar of the rest (DiffRate).

    x: (B, P + N, C) float, P prefix tokens first. score: (B, N). survivors: patch tokens that are not
    dropped. keep: patch tokens after merging, so survivors - keep are merged. Tokens are compared by the cosine of
    their features. Returns int64 (B, keep + 2m) with m = survivors - keep: positions of the tokens with the highest
    scores, ascending; positions of the merged tokens, by falling score; for each its host, counted among the tokens
    that stay. Of equal scores the lower index counts as higher; of equal similarities the lower index is the host.
    Raises ValueError unless 1 <= keep <= survivors <= N.
    """
    patches = score.shape[1]
    if not 1 <= keep <= survivors <= patches:
        raise ValueError(f"cannot keep {survivors} and then {keep} of {patches} patch tokens")
    prefix = x.shape[1] - patches
    order = HIGHEST(score, survivors) + prefix
    stay = torch.topk(order[:, :keep], keep, dim=1, largest=False)[0]
    if keep == survivors:
        return stay
    gone = order[:, keep:]
    similarity = torch.matmul(unit_vectors(TAKE_ROWS(x, gone)), unit_vectors(TAKE_ROWS(x, stay)).transpose(1, 2))
    return torch.cat([stay, gone, similarity.argmax(dim=2)], dim=1)


def merge_ranked(x: Tensor, match: Tensor, sizes: Tensor, merged_sizes: Tensor, prefix: int) -> Tensor:
    """Return prefix tokens and the tokens that stay, with the merged tokens added to their hosts (DiffRate).

    x: (B, T, C) float. match: of `match_ranked`. sizes: (B, T), of x. merged_sizes: (B, T'), of the result. A host and
    its guests become their mean, weighted by size; other tokens do not change. Returns (B, T', C).
    """
    keep = merged_sizes.shape[1] - prefix
    stay, gone, host = match_parts(match, (match.shape[1] - keep) // 2)
    tokens = TAKE_ROWS(x, stay)
    if match.shape[1] > keep:
        own, guests = torch.gather(sizes, 1, stay), torch.gather(sizes, 1, gone)
        tokens = _mean(tokens, own, TAKE_ROWS(x, gone), guests, host, merged_sizes[:, prefix:])
    return torch.cat([x[:, :prefix], tokens], dim=1)


def ranked_sizes(sizes: Tensor, match: Tensor, prefix: int, keep: int) -> Tensor:
    """Return the sizes of the tokens of `merge_ranked`: (B, T) to (B, P + keep). Dropped tokens count nowhere."""
    stay, gone, host = match_parts(match, (match.shape[1] - keep) // 2)
    tokens = torch.gather(sizes, 1, stay)
    if match.shape[1] > keep:
        tokens = tokens.scatter_add(1, host, torch.gather(sizes, 1, gone))
    return torch.cat([sizes[:, :prefix], tokens], dim=1)


def unit_sizes(x: Tensor) -> Tensor:
    """Return the sizes of tokens before any merging: (B, T, C) to ones (B, T) of the same dtype."""
    return torch.ones_like(x[:, :, 0])


def size_bias(sizes: Tensor) -> Tensor:
    """Return the attention mask that counts each key as often as its size: (B, T) to log(sizes) (B, 1, 1, T).

    Added to the logits, it gives proportional attention (ToMe, section 3.2).
    """
    return torch.log(sizes)[:, None, None, :]


def _first_even(prefix: int) -> int:
    """Return the first even position of a patch token; positions count the prefix tokens."""
    return prefix + prefix % 2


def first_odd(prefix: int) -> int:
    """Return the first odd position of a patch token; positions count the prefix tokens."""
    return prefix + (prefix + 1) % 2


def match_parts(match: Tensor, merged: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions that stay, the merged positions and their hosts."""
    stay = match.shape[1] - 2 * merged
    return match[:, :stay], match[:, stay : stay + merged], match[:, stay + merged :]


def _mean_over_heads(keys: Tensor) -> Tensor:
    """Return (B, T, d) of (B, H, T, d), as a matmul: ONNX Runtime reduces a leading dimension slowly."""
    _, heads, tokens, width = keys.shape
    weights = torch.full((1, heads), 1.0 / heads, dtype=keys.dtype, device=keys.device)
    return torch.matmul(weights, keys.reshape(-1, heads, tokens * width)).reshape(-1, tokens, width)


def _mean(hosts: Tensor, own: Tensor, guests: Tensor, sizes: Tensor, host: Tensor, total: Tensor) -> Tensor:
    """Return the mean of each host and its guests, weighted by size.

    hosts: (B, n, C). own: (B, n), sizes of the hosts. guests: (B, m, C), with `sizes` (B, m) and `host` (B, m), int64
    indices of hosts. total: (B, n), own size and those of the guests. Returns (B, n, C).
    """
    index = torch.arange(hosts.shape[1], device=host.device).unsqueeze(-1)
    weight = (index == host.unsqueeze(1)).to(hosts.dtype) * sizes.unsqueeze(1) / total.unsqueeze(-1)
    return hosts * (own / total).unsqueeze(-1) + torch.matmul(weight, guests)


def _joined(x: Tensor, prefix: int, stay: Tensor, merged: Tensor) -> Tensor:
    parts = [x[:, :prefix]] if prefix else []
    parts += [TAKE_ROWS(x, stay)] if stay.shape[1] else []
    return torch.cat([*parts, merged], dim=1)


def _register() -> Library:
    library = Library("vitslim", "FRAGMENT")  # type: ignore[no-untyped-call]
    merge = "(Tensor x, Tensor match, Tensor sizes, Tensor merged_sizes, int prefix) -> Tensor"
    resize = "(Tensor sizes, Tensor match, int prefix, int keep) -> Tensor"
    signatures = {
        match_alternate: "(Tensor keys, int prefix, int keep) -> Tensor",
        match_ranked: "(Tensor x, Tensor score, int survivors, int keep) -> Tensor",
        merge_alternate: merge,
        merge_ranked: merge,
        alternate_sizes: resize,
        ranked_sizes: resize,
        unit_sizes: "(Tensor x) -> Tensor",
        size_bias: "(Tensor sizes) -> Tensor",
    }
    for function, signature in signatures.items():
        library.define(function.__name__ + signature)  # type: ignore[no-untyped-call]
        library.impl(function.__name__, function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    return library


_LIBRARY = _register()
"""The operators stay registered as long as this object exists."""

MATCH_ALTERNATE = torch.ops.vitslim.match_alternate.default
MATCH_RANKED = torch.ops.vitslim.match_ranked.default
MERGE_ALTERNATE = torch.ops.vitslim.merge_alternate.default
MERGE_RANKED = torch.ops.vitslim.merge_ranked.default
ALTERNATE_SIZES = torch.ops.vitslim.alternate_sizes.default
RANKED_SIZES = torch.ops.vitslim.ranked_sizes.default
UNIT_SIZES = torch.ops.vitslim.unit_sizes.default
SIZE_BIAS = torch.ops.vitslim.size_bias.default
