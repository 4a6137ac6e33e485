"""Dropping and merging of tokens as masks, so that gradients reach the rates (DiffRate, ICCV 2023).

Tokens that are dropped or merged stay in the sequence but are invisible: no attention reads them. A merged token is
also added to its host. The masks are hard, so the visible tokens are those that the deployed operators leave.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.graph.ops.selection import highest, take_rows, unit_vectors
from vitslim.stages.token_squeeze.merging.rates import expected_rate, keep_mask, kept_count


@dataclass(frozen=True)
class Tokens:
    """Features of all tokens, and which of them are still there."""

    x: Tensor
    """float (B, T, C), prefix tokens first."""
    sizes: Tensor
    """float (B, T): number of original tokens that a visible token stands for."""
    mask: Tensor
    """float (B, T): 1 for a visible token, 0 for one that was dropped or merged."""
    patches: int
    """Visible patch tokens."""


def masked_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention in which key j counts `weights` times, and its probabilities.

    q, k: (B, H, T, d); v: (B, H, T, e); weights: (B, T), at least 0, with a gradient also where it is 0. Returns
    (B, H, T, e) and (B, H, T, T).
    """
    logits = torch.matmul(q, k.transpose(-2, -1)) * scale
    weighed = torch.exp(logits - logits.amax(dim=-1, keepdim=True).detach()) * weights[:, None, None, :]
    probabilities = weighed / weighed.sum(dim=-1, keepdim=True)
    return torch.matmul(probabilities, v), probabilities


def token_score(probabilities: Tensor, mask: Tensor, prefix: int, has_class_token: bool) -> Tensor:
    """Return the attention of the class token to each patch token, or without one the attention that a token receives
    from visible tokens: (B, H, T, T) and (B, T) to (B, T - prefix), without gradients."""
    attention = probabilities.detach().mean(dim=1)
    if has_class_token:
        return attention[:, 0, prefix:]
    return torch.matmul(mask.detach().unsqueeze(1), attention).squeeze(1)[:, prefix:]


def compress(tokens: Tokens, score: Tensor, prune: Tensor, merge: Tensor) -> Tokens:
    """Drop and merge patch tokens at differentiable rates.

    score: (B, N) of the patch tokens. prune: logits (K,) of the rate of visible patch tokens that are dropped. merge:
    the same for the rate of the rest that is merged. Patch tokens of the result are sorted by importance.
    """
    sorted_ = _sorted(tokens, score)
    survivors = kept_count(float(expected_rate(prune).detach()), tokens.patches)
    keep = kept_count(float(expected_rate(merge).detach()), survivors)
    prefix, patches = tokens.x.shape[1] - score.shape[1], score.shape[1]
    stays = _for_all(keep_mask(prune, tokens.patches), patches) * _for_all(keep_mask(merge, survivors), patches)
    mask = torch.cat([sorted_.mask[:, :prefix], sorted_.mask[:, prefix:] * stays], dim=1)
    if keep == survivors:
        return Tokens(sorted_.x, sorted_.sizes, mask, keep)
    return Tokens(*_merged(sorted_, prefix, keep, survivors), mask, keep)


def _sorted(tokens: Tokens, score: Tensor) -> Tokens:
    """Return the tokens with visible patch tokens first, by falling score."""
    prefix = tokens.x.shape[1] - score.shape[1]
    visible = tokens.mask.detach()[:, prefix:]
    order = highest((score + 1) * visible, score.shape[1]) + prefix
    first = torch.arange(prefix, device=order.device).expand(len(order), -1)
    order = torch.cat([first, order], dim=1)
    sizes, mask = (torch.gather(one, 1, order) for one in (tokens.sizes, tokens.mask))
    return Tokens(take_rows(tokens.x, order), sizes, mask, tokens.patches)


def _for_all(mask: Tensor, patches: int) -> Tensor:
    """Extend a mask over visible ranks to all patch tokens: an invisible one would take the last visible rank."""
    return torch.cat([mask, mask[-1:].expand(patches - len(mask))])


def _merged(tokens: Tokens, prefix: int, keep: int, survivors: int) -> tuple[Tensor, Tensor]:
    """Add patch tokens from rank `keep` to `survivors` to the most similar ones before them, as `merge_ranked` does."""
    x, sizes = tokens.x, tokens.sizes
    hosts, guests = x[:, prefix : prefix + keep], x[:, prefix + keep : prefix + survivors]
    own, added = sizes[:, prefix : prefix + keep], sizes[:, prefix + keep : prefix + survivors]
    with torch.no_grad():
        host = torch.matmul(unit_vectors(guests), unit_vectors(hosts).transpose(1, 2)).argmax(dim=2)
        weight = torch.nn.functional.one_hot(host, keep).transpose(1, 2).to(x.dtype) * added.unsqueeze(1)
        total = own + weight.sum(dim=2)
    mean = (hosts * own.unsqueeze(-1) + torch.matmul(weight, guests)) / total.unsqueeze(-1)
    rest = slice(prefix + keep, None)
    return torch.cat([x[:, :prefix], mean, x[:, rest]], 1), torch.cat([sizes[:, :prefix], total, sizes[:, rest]], 1)
