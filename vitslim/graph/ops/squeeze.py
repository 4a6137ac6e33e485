"""Operators that keep the patch tokens with the highest scores, one node each in a graph.

They differ in the treatment of the other tokens: `squeeze_tokens` adds each to the most similar kept token (TPS, CVPR
2023, arXiv 2304.10716), `fuse_inattentive` adds them up to one token (EViT, ICLR 2022, arXiv 2202.07800), and
`keep_tokens` drops them (DynamicViT, arXiv 2106.02034).

All are composites of ordinary operators and of those in `selection.py`, with a constant number of kept tokens and a
free batch size, so autograd, torch.export and the ONNX exporter need nothing else.

Multiply-accumulates for one image, with Np removed and Nr kept patch tokens of width C: similarity Np*Nr*C and fusion
Nr*Np*C in `squeeze_tokens`, Np*C in `fuse_inattentive`. The cost table of TPS counts the similarity alone; vitslim
counts every matmul.
"""

from __future__ import annotations

import math

import torch
from torch.library import Library

from vitslim.graph.ops.selection import HIGHEST, TAKE_ROWS, unit_vectors


def squeeze_tokens(x: torch.Tensor, score: torch.Tensor, keep: int) -> torch.Tensor:
    """Keep the patch tokens with the highest scores and add each other token to the most similar kept one.

    x: (B, P + N, C) float, P prefix tokens first, which pass unchanged. score: (B, N). keep: 1 to N.
    Returns (B, P + keep, C); kept tokens stay in their order. Of equal scores the lower index wins.
    No gradient reaches the scores: selection by rank has none. Raises ValueError for another `keep`.
    """
    prefix = x.shape[1] - score.shape[1]
    kept, removed = split_by_score(score, keep)
    return torch.cat([x[:, :prefix], fuse(TAKE_ROWS(x, kept + prefix), TAKE_ROWS(x, removed + prefix))], dim=1)


def keep_tokens(x: torch.Tensor, score: torch.Tensor, keep: int) -> torch.Tensor:
    """Keep the patch tokens with the highest scores and drop the others. Arguments and result as `squeeze_tokens`."""
    prefix = x.shape[1] - score.shape[1]
    kept, _ = split_by_score(score, keep)
    return torch.cat([x[:, :prefix], TAKE_ROWS(x, kept + prefix)], dim=1)


def fuse_inattentive(x: torch.Tensor, score: torch.Tensor, keep: int) -> torch.Tensor:
    """Keep the patch tokens with the highest scores and append the sum of the others, weighted by their scores.

    Arguments as `squeeze_tokens`. Returns (B, P + keep + 1, C). The weights are not normalized (EViT, section 3.3).
    Gradients reach the scores of the removed tokens.
    """
    prefix = x.shape[1] - score.shape[1]
    kept, removed = split_by_score(score, keep)
    weights = TAKE_ROWS(score.unsqueeze(-1), removed).transpose(1, 2)
    fused = torch.matmul(weights, TAKE_ROWS(x, removed + prefix))
    return torch.cat([x[:, :prefix], TAKE_ROWS(x, kept + prefix), fused], dim=1)


def split_by_score(score: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of the `keep` highest scores, ascending, and the other positions, by falling score.

    score: (B, N) float; of equal scores the lower index is kept. Returns int64 (B, keep) and (B, N - keep).
    Raises ValueError unless keep is 1 to N.
    """
    patches = score.shape[1]
    if not 1 <= keep <= patches:
        raise ValueError(f"cannot keep {keep} of {patches} patch tokens")
    order = HIGHEST(score, patches)
    return torch.topk(order[:, :keep], keep, dim=1, largest=False)[0], order[:, keep:]


def fuse(reserved: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """Add every pruned token to its most similar reserved token (TPS, section 3.2, equations 4 to 6).

    reserved: (B, Nr, C), pruned: (B, Np, C), floats. With c the cosine similarity, a host r and its guests p become
    (e*r + sum exp(c)*p) / (e + sum exp(c)): the host counts as similarity 1 to itself. A host without guests is
    unchanged; of several hosts that are exactly equally similar each takes the guest. Returns (B, Nr, C).
    """
    similarity, matched = best_matches(reserved, pruned)
    weight = (torch.exp(similarity) * matched.to(similarity.dtype)).transpose(1, 2)
    total = weight.sum(dim=2, keepdim=True) + math.e
    return (reserved * math.e + torch.matmul(weight, pruned)) / total


def best_matches(reserved: torch.Tensor, pruned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosine similarity of every pruned to every reserved token, and whether it is the largest of its row.

    reserved: (B, Nr, C), pruned: (B, Np, C), floats. Returns float and bool, both (B, Np, Nr). Exact ties are all True.
    """
    similarity = torch.matmul(unit_vectors(pruned), unit_vectors(reserved).transpose(1, 2))
    return similarity, similarity == similarity.amax(dim=2, keepdim=True)


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
