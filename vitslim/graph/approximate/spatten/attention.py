"""Attention as SpAtten computes it: progressive quantization, local value pruning, importance.

Source: Wang, Zhang, Han, "SpAtten: Efficient Sparse Attention Architecture with Cascade Token and Head Pruning", HPCA
2021. Tokens and heads that are pruned stay in the tensors and are hidden by masks, so that shapes do not change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.graph.approximate.bit_planes import (
    largest_integer,
    straight_through,
    symmetric_scale,
    to_symmetric,
    upper_plane,
)
from vitslim.recipe.accelerators import ProgressiveQuantization


@dataclass(frozen=True)
class Operands:
    """Operands of one attention; queries (B, H, n, d), keys (B, H, m, d), values (B, H, m, e)."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    bias: Tensor | None
    """Added to the logits, broadcasts to (B, H, n, m); None without one."""
    keys: Tensor | None
    """bool (B, m): keys that were not pruned; None: all."""
    queries: Tensor | None
    """bool (B, n): queries that were not pruned; None: all."""


def probabilities(x: Operands, pq: ProgressiveQuantization) -> tuple[Tensor, Tensor]:
    """Return the probabilities (B, H, n, m) of progressive quantization, and the queries that read low bits.

    Logits come from the upper bit planes of Q and K. A query whose largest probability is below the threshold computes
    them once more with all bits. Scales are per head and image. The second result is bool (B, H, n), pruned queries
    excluded.
    """
    scaled = [_integers(one, counted, pq) for one, counted in ((x.q, x.queries), (x.k, x.keys))]
    upper = [straight_through(one, scale * upper_plane(whole, pq.lsb))
             for one, (whole, scale) in zip((x.q, x.k), scaled, strict=True)]  # fmt: skip
    found = _softmax(x, *upper)
    flat = found.detach().amax(dim=-1) < pq.threshold
    if x.queries is not None:
        flat &= x.queries[:, None, :]
    if pq.lsb == 0 or not bool(flat.any()):
        return found, torch.zeros_like(flat)
    exact = [straight_through(one, scale * whole) for one, (whole, scale) in zip((x.q, x.k), scaled, strict=True)]
    return torch.where(flat[..., None], _softmax(x, *exact), found), flat


def upper_values(x: Operands, pq: ProgressiveQuantization) -> Tensor:
    """Return V (B, H, m, e) from its upper bit plane; its low bits are never read."""
    whole, scale = _integers(x.v, x.keys, pq)
    return straight_through(x.v, scale * upper_plane(whole, pq.lsb))


def _integers(x: Tensor, counted: Tensor | None, pq: ProgressiveQuantization) -> tuple[Tensor, Tensor]:
    top = largest_integer(pq.msb, pq.lsb)
    scale = symmetric_scale(x, top, (2, 3), None if counted is None else counted[:, None, :, None])
    return to_symmetric(x, scale, top), scale


def _softmax(x: Operands, q: Tensor, k: Tensor) -> Tensor:
    logits = torch.matmul(q * x.scale, k.transpose(-2, -1))
    if x.bias is not None:
        logits = logits + x.bias
    if x.keys is not None:
        logits = logits.masked_fill(~x.keys[:, None, None, :], float("-inf"))
    return torch.softmax(logits, dim=-1)


def largest(values: Tensor, count: int) -> Tensor:
    """Return a bool mask of the `count` largest entries of the last dimension; equal entries are chosen arbitrarily."""
    if count >= values.shape[-1]:
        return torch.ones_like(values, dtype=torch.bool)
    places = values.detach().topk(count, dim=-1, sorted=False).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, places, True)


def used_values(found: Tensor, count: int, alive: Tensor | None) -> Tensor:
    """Return the V rows that each query multiplies: bool (B, H, n, m), those of its `count` largest probabilities.

    alive: bool (B, m), keys that were not pruned; at least `count` of them per image.
    """
    mask = largest(found if alive is None else found.masked_fill(~alive[:, None, None, :], -1.0), count)
    return mask if alive is None else mask & alive[:, None, None, :]


def token_importance(found: Tensor, heads: Tensor | None, queries: Tensor | None) -> Tensor:
    """Return the sum of the probabilities of each key over computed heads and queries; float (B, m)."""
    seen = found.detach()
    if heads is not None:
        seen = seen * heads[:, :, None, None]
    if queries is not None:
        seen = seen * queries[:, None, :, None]
    return seen.sum(dim=(1, 2))


def head_importance(output: Tensor, queries: Tensor | None) -> Tensor:
    """Return the sum of the magnitudes of each head's output (B, H, n, e) over its queries; float (B, H)."""
    magnitude = output.detach().abs().sum(dim=-1)
    return (magnitude if queries is None else magnitude * queries[:, None, :]).sum(dim=-1)


def select(importance: Tensor, alive: Tensor | None, count: int, always: int = 0) -> Tensor:
    """Return the `count` most important positions that are alive; bool (B, N).

    importance: float (B, N). always: the first positions that are kept whatever their importance.
    """
    score = importance.clone()
    if alive is not None:
        score = score.masked_fill(~alive, float("-inf"))
    score[:, :always] = float("inf")
    return largest(score, count)
