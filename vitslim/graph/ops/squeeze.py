"""Operators that keep the patch tokens with the highest scores, one node each in a graph.

They differ in the treatment of the other tokens: `squeeze_tokens` adds each to the most similar kept token (TPS, CVPR
2023, arXiv 2304.10716), `fuse_inattentive` adds them up to one token (EViT, ICLR 2022, arXiv 2202.07800), and
`keep_tokens` drops them (DynamicViT, arXiv 2106.02034).

All are composites of ordinary operators, so autograd, torch.export and the ONNX exporter need nothing else: top-k,
gathering by index, matmuls and a comparison, all with a constant number of kept tokens and a free batch size.

Multiply-accumulates for one image, with Np removed and Nr kept patch tokens of width C: similarity Np*Nr*C and fusion
Nr*Np*C in `squeeze_tokens`, Np*C in `fuse_inattentive`. The cost table of TPS counts the similarity alone; vitslim
counts every matmul.
"""

from __future__ import annotations

import math

import torch
from torch.library import Library

NORM_EPSILON = 1e-6
"""Added to the length of a token before the division (TPS, section 3.2)."""


TIE_STEP = 2.0**-40
TIE_FLOOR = 1e-50
"""Far below the smallest float32, so that scores of exactly zero are ordered too."""


def squeeze_tokens(x: torch.Tensor, score: torch.Tensor, keep: int) -> torch.Tensor:
    """Keep the patch tokens with the highest scores and add each other token to the most similar kept one.

    x: (B, P + N, C) float, P prefix tokens first, which pass unchanged. score: (B, N), from [0, inf). keep: 1 to N.
    Returns (B, P + keep, C); kept tokens stay in their order. Of equal scores the lower index wins.
    No gradient reaches the scores: selection by rank has none. Raises ValueError for another `keep`.
    """
    prefix, tokens = _parts(x, score)
    kept, removed = split_by_score(score, keep)
    return torch.cat([prefix, fuse(_take(tokens, kept), _take(tokens, removed))], dim=1)


def keep_tokens(x: torch.Tensor, score: torch.Tensor, keep: int) -> torch.Tensor:
    """Keep the patch tokens with the highest scores and drop the others. Arguments and result as `squeeze_tokens`."""
    prefix, tokens = _parts(x, score)
    kept, _ = split_by_score(score, keep)
    return torch.cat([prefix, _take(tokens, kept)], dim=1)


def fuse_inattentive(x: torch.Tensor, score: torch.Tensor, keep: int) -> torch.Tensor:
    """Keep the patch tokens with the highest scores and append the sum of the others, weighted by their scores.

    Arguments as `squeeze_tokens`. Returns (B, P + keep + 1, C). The weights are not normalized (EViT, section 3.3).
    Gradients reach the scores of the removed tokens.
    """
    prefix, tokens = _parts(x, score)
    kept, removed = split_by_score(score, keep)
    weights = torch.gather(score, 1, removed).unsqueeze(1)
    fused = torch.matmul(weights, _take(tokens, removed))
    return torch.cat([prefix, _take(tokens, kept), fused], dim=1)


def split_by_score(score: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of the `keep` highest scores, ascending, and the other positions, by falling score.

    score: (B, N), from [0, inf); of equal scores the lower index is kept. Returns int64 (B, keep) and (B, N - keep).
    Raises ValueError unless keep is 1 to N.
    """
    patches = score.shape[1]
    if not 1 <= keep <= patches:
        raise ValueError(f"cannot keep {keep} of {patches} patch tokens")
    order = torch.topk(_distinct(score), patches, dim=1)[1]
    return torch.topk(order[:, :keep], keep, dim=1, largest=False)[0], order[:, keep:]


def _parts(x: torch.Tensor, score: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the prefix tokens and the patch tokens."""
    prefix = x.shape[1] - score.shape[1]
    return x[:, :prefix], x[:, prefix:]


def _distinct(score: torch.Tensor) -> torch.Tensor:
    """Return scores in float64 with the same order, from [0, inf), and ties broken in favor of lower indices.

    torch.topk leaves the order of equal values open, and a stable sort has no ONNX form. Two float32 numbers differ by
    at least 2^-24 of the larger one, so relative steps of TIE_STEP (up to 2^14 tokens) never change their order.
    """
    patches = score.shape[1]
    lower_first = torch.arange(patches - 1, -1, -1, dtype=torch.float64, device=score.device)
    distinct: torch.Tensor = (score.to(torch.float64) + TIE_FLOOR) * (1.0 + lower_first * TIE_STEP)
    return distinct


def fuse(reserved: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """Add every pruned token to its most similar reserved token (TPS, section 3.2, equations 4 to 6).

    reserved: (B, Nr, C), pruned: (B, Np, C), floats. With c the cosine similarity, a host r and its guests p become
    (e*r + sum exp(c)*p) / (e + sum exp(c)): the host counts as similarity 1 to itself. A host without guests is
    unchanged; of several hosts that are exactly equally similar each takes the guest. Returns (B, Nr, C).
    """
    similarity = torch.matmul(_unit(pruned), _unit(reserved).transpose(1, 2))
    matched = similarity == similarity.amax(dim=2, keepdim=True)
    weight = (torch.exp(similarity) * matched.to(similarity.dtype)).transpose(1, 2)
    total = weight.sum(dim=2, keepdim=True) + math.e
    return (reserved * math.e + torch.matmul(weight, pruned)) / total


def _unit(tokens: torch.Tensor) -> torch.Tensor:
    length: torch.Tensor = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    return tokens / (length + NORM_EPSILON)


def _take(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.gather(tokens, 1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


def _register() -> Library:
    library = Library("vitslim", "FRAGMENT")  # type: ignore[no-untyped-call]
    for function in (squeeze_tokens, keep_tokens, fuse_inattentive):
        name = function.__name__
        library.define(f"{name}(Tensor x, Tensor score, int keep) -> Tensor")  # type: ignore[no-untyped-call]
        library.impl(name, function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    return library


_LIBRARY = _register()
"""The operators stay registered as long as this object exists."""

SQUEEZE_TOKENS = torch.ops.vitslim.squeeze_tokens.default
KEEP_TOKENS = torch.ops.vitslim.keep_tokens.default
FUSE_INATTENTIVE = torch.ops.vitslim.fuse_inattentive.default
