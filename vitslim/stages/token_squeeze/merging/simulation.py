"""Dropping and merging of tokens as weights, so that gradients reach the rates.

Tokens that are dropped or merged stay in the sequence with weight 0: no attention sees them. Tokens at the boundary may
have weights in between, as `rates.rank_mask` says; a merged token then gives the rest of its weight to its host. With
weights 0 and 1 alone, the model computes the same as with the deployed operators.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.graph.ops.selection import highest, take_rows, unit_vectors
from vitslim.stages.token_squeeze.merging.rates import kept_tokens, rank_mask


@dataclass(frozen=True)
class Tokens:
    """Features of all tokens, and which of them are still there."""

    x: Tensor
    """float (B, T, C), prefix tokens first."""
    sizes: Tensor
    """float (B, T): number of original tokens that a token stands for."""
    weights: Tensor
    """float (B, T), from 0 for a token that is gone to 1."""
    patches: Tensor
    """Number of patch tokens that are left, a scalar."""


@dataclass(frozen=True)
class Boundary:
    """Tokens between those that stay and those that go."""

    width: int
    """Number of tokens with weights between 0 and 1."""
    roots: tuple[float, float]
    """Square roots of the weights at the boundaries of dropping and of merging."""


HARD = Boundary(0, (0.0, 0.0))
"""All weights are 0 or 1."""


def weighed_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention in which key j counts `weights` times, and its probabilities.

    q, k: (B, H, T, d); v: (B, H, T, e); weights: (B, T), at least 0. Returns (B, H, T, e) and (B, H, T, T).
    """
    logits = torch.matmul(q, k.transpose(-2, -1)) * scale
    weighed = torch.exp(logits - logits.amax(dim=-1, keepdim=True).detach()) * weights[:, None, None, :]
    probabilities = weighed / weighed.sum(dim=-1, keepdim=True)
    return torch.matmul(probabilities, v), probabilities


def token_score(probabilities: Tensor, weights: Tensor, prefix: int, has_class_token: bool) -> Tensor:
    """Return the importance of each patch token, without gradients: (B, H, T, T) and (B, T) to (B, T - prefix).

    It is the attention of the class token, or without one the attention that a token receives. A token with a weight
    below 1 scores as with weight 1, one with weight 0 scores 0.
    """
    attention, weights = probabilities.detach().mean(dim=1), weights.detach()
    queries = attention[:, :1] if has_class_token else weights.unsqueeze(1) @ attention
    score = queries.squeeze(1) / weights.clamp(min=torch.finfo(weights.dtype).tiny)
    return torch.where(weights > 0, score, 0.0)[:, prefix:]


def compress(tokens: Tokens, score: Tensor, prune: Tensor, merge: Tensor, boundary: Boundary = HARD) -> Tokens:
    """Drop and merge patch tokens at differentiable rates.

    score: (B, N), of the patch tokens. prune: rate at which patch tokens are dropped, a scalar. merge: rate at which
    the rest is merged. Patch tokens of the result are sorted by importance.
    """
    found, patches = _sorted(tokens, score), score.shape[1]
    prefix = tokens.x.shape[1] - patches
    survivors = kept_tokens(prune, tokens.patches)
    keep = kept_tokens(merge, survivors)
    undropped = rank_mask(survivors, patches, boundary.width, boundary.roots[0]) * found.weights[:, prefix:]
    unmerged = rank_mask(keep, patches, boundary.width, boundary.roots[1])
    hosts = int((unmerged == 1).sum())
    if hosts < patches and float((undropped * (1 - unmerged)).detach().sum()):
        found = _merged(found, prefix, hosts, undropped * (1 - unmerged))
    weights = torch.cat([found.weights[:, :prefix], undropped * unmerged], dim=1)
    return Tokens(found.x, found.sizes, weights, keep)


def _sorted(tokens: Tokens, score: Tensor) -> Tokens:
    """Return the tokens with patch tokens by falling score; those with weight 0 come last."""
    prefix = tokens.x.shape[1] - score.shape[1]
    is_there = tokens.weights.detach()[:, prefix:] > 0
    order = highest(torch.where(is_there, score, -1.0), score.shape[1]) + prefix
    first = torch.arange(prefix, device=order.device).expand(len(order), -1)
    order = torch.cat([first, order], dim=1)
    sizes, weights = (torch.gather(one, 1, order) for one in (tokens.sizes, tokens.weights))
    return Tokens(take_rows(tokens.x, order), sizes, weights, tokens.patches)


def _merged(tokens: Tokens, prefix: int, hosts: int, shares: Tensor) -> Tokens:
    """Add shares of the patch tokens to the most similar of the first `hosts` ones, as `merge_ranked` does.

    shares: (B, N), the part of the size of each patch token that its host takes; 0 for the hosts.
    """
    x, sizes = tokens.x[:, prefix:], tokens.sizes[:, prefix:]
    count = int((shares.detach().amax(dim=0) > 0).nonzero().max()) + 1
    guests, added = x[:, hosts:count], (sizes * shares)[:, hosts:count]
    with torch.no_grad():
        similarity = torch.matmul(unit_vectors(guests), unit_vectors(x[:, :hosts]).transpose(1, 2))
        host = torch.nn.functional.one_hot(similarity.argmax(dim=2), hosts).transpose(1, 2).to(x.dtype)
    taken = host * added.unsqueeze(1)
    total = sizes[:, :hosts] + taken.sum(dim=2)
    mean = (x[:, :hosts] * sizes[:, :hosts].unsqueeze(-1) + torch.matmul(taken, guests)) / total.unsqueeze(-1)
    merged = torch.cat([tokens.x[:, :prefix], mean, x[:, hosts:]], dim=1)
    counted = torch.cat([tokens.sizes[:, :prefix], total, sizes[:, hosts:]], dim=1)
    return Tokens(merged, counted, tokens.weights, tokens.patches)
