"""Token selection with masks instead of gathering, so that gradients reach the scores (training only).

The sequence keeps its full length. A decision is 1.0 for a token that stays and 0.0 for one that was dropped; a dropped
token is visible to itself only. Sources: DynamicViT (Rao et al., NeurIPS 2021), TPS (Wei et al., CVPR 2023).
Every operator is a composite of ordinary ones, so autograd and axis inference need nothing else. Comparisons and
exponentials run in float32 under autocast: rounded similarities would tie.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional

from vitslim.graph.ops.image_draws import gumbel_noise
from vitslim.graph.ops.selection import unit_vectors
from vitslim.graph.ops.squeeze import split_by_score

POLICY_EPSILON = 1e-6
"""Added to the denominator of masked attention (DynamicViT)."""

HIDDEN = -100.0
"""Similarity of a token to itself and to tokens that cannot be hosts; cosines are at least -1."""


def sampled_decision(logits: Tensor, previous: Tensor | None) -> Tensor:
    """Sample which tokens stay: hard straight-through Gumbel-softmax at temperature 1, times the previous decision.

    logits: (B, N, 2) float, channel 0 for keeping. previous: (B, N) of zeros and ones; None: all tokens are there.
    Returns (B, N) float32 of zeros and ones, with the gradient of the soft sample.
    """
    # As functional.gumbel_softmax(hard=True), whose noise would depend on the number of ranks.
    keep, drop = functional.softmax(logits.float() + gumbel_noise(logits.float()), dim=-1).unbind(dim=-1)
    kept = (keep >= drop).to(keep.dtype) - keep.detach() + keep
    return kept if previous is None else kept * previous


def ranked_decision(score: Tensor, previous: Tensor | None, keep: int) -> Tensor:
    """Keep the tokens with the highest scores among those of the previous decision, as the deployed model does.

    score: (B, N) float in [0, 1]. previous: (B, N) of zeros and ones, with at least `keep` ones; None: all ones.
    Of equal scores the lower index wins. Returns (B, N) float32 with exactly `keep` ones, without a gradient.
    """
    present = score if previous is None else score.masked_fill(previous < 0.5, -1.0)
    kept, _ = split_by_score(present.detach(), keep)
    return torch.zeros_like(present, dtype=torch.float32).scatter(1, kept, 1.0)


def masked_squeeze(x: Tensor, decision: Tensor, previous: Tensor | None) -> Tensor:
    """Add each token that is dropped here to the most similar token that stays (TPS, section 3.2).

    x: (B, P + N, C) float, P prefix tokens first, which pass unchanged. decision, previous: (B, N) of zeros and ones;
    tokens that `previous` drops are neither hosts nor guests. Returns the shape of `x`: hosts as `fuse` computes them,
    every other token unchanged. The weight of a guest has a gradient to the decision on it.
    """
    tokens = x[:, x.shape[1] - decision.shape[1] :].float()
    dropped = 1.0 - decision if previous is None else (1.0 - decision) * previous
    with _float32(x):
        unit = unit_vectors(tokens)
        itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=x.device)
        hidden = (decision < 0.5).unsqueeze(1) | itself
        similarity = torch.matmul(unit, unit.transpose(1, 2)).masked_fill(hidden, HIDDEN)
        matched = (similarity == similarity.amax(dim=2, keepdim=True)).to(tokens.dtype)
        weight = (torch.exp(similarity) * matched * dropped.unsqueeze(-1)).transpose(1, 2)
        total = weight.sum(dim=2, keepdim=True) + math.e
        squeezed = (tokens * math.e + torch.matmul(weight, tokens)) / total
    return torch.cat([x[:, : x.shape[1] - decision.shape[1]], squeezed.to(x.dtype)], dim=1)


def masked_keep(x: Tensor, decision: Tensor, previous: Tensor | None) -> Tensor:  # noqa: ARG001
    """Return `x`: a token that is dropped without fusion changes no other token. Arguments as `masked_squeeze`."""
    return x


def policy_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, decision: Tensor) -> Tensor:
    """Attention in which a dropped token is visible only to itself (DynamicViT, section 3.3).

    q: (B, H, n, d), k: (B, H, m, d), v: (B, H, m, e) floats. decision: (B, N) of zeros and ones for the last N of the m
    keys; the keys before them (class token, registers) are visible to all. With a = exp(logit - row maximum), times the
    decision of the key except for a token itself (n = m), the weights are (a + eps / m) / (sum a + eps).
    Returns (B, H, n, e) in the dtype of v.
    """
    keys = k.shape[2]
    visible = functional.pad(decision, (keys - decision.shape[1], 0), value=1.0)[:, None, None, :]
    if q.shape[2] == keys:
        itself = torch.eye(keys, dtype=visible.dtype, device=visible.device)
        visible = visible + (1.0 - visible) * itself
    logits = (torch.matmul(q * scale, k.transpose(-2, -1))).float()
    weights = torch.exp(logits - logits.amax(dim=-1, keepdim=True)) * visible
    weights = (weights + POLICY_EPSILON / keys) / (weights.sum(dim=-1, keepdim=True) + POLICY_EPSILON)
    return torch.matmul(weights.to(v.dtype), v)


def masked_mean(x: Tensor, decision: Tensor, keepdim: bool) -> Tensor:
    """Average tokens that were not dropped.

    x: (B, M, C) float; decision: (B, N) of zeros and ones for its last N tokens, the others count. Returns (B, 1, C),
    or (B, C) without `keepdim`; zeros if no token is left.
    """
    visible = functional.pad(decision, (x.shape[1] - decision.shape[1], 0), value=1.0).unsqueeze(-1)
    total = (x * visible).sum(dim=1, keepdim=keepdim)
    count = visible.sum(dim=1, keepdim=keepdim).clamp(min=1.0)
    return (total / count).to(x.dtype)


def _float32(x: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off on the device of `x`."""
    context: AbstractContextManager[None] = torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False)
    return context


def _register() -> Library:
    library = Library("vitslim", "FRAGMENT")  # type: ignore[no-untyped-call]
    signatures = {
        "sampled_decision(Tensor logits, Tensor? previous) -> Tensor": sampled_decision,
        "ranked_decision(Tensor score, Tensor? previous, int keep) -> Tensor": ranked_decision,
        "masked_squeeze(Tensor x, Tensor decision, Tensor? previous) -> Tensor": masked_squeeze,
        "masked_keep(Tensor x, Tensor decision, Tensor? previous) -> Tensor": masked_keep,
        "policy_attention(Tensor q, Tensor k, Tensor v, float scale, Tensor decision) -> Tensor": policy_attention,
        "masked_mean(Tensor x, Tensor decision, bool keepdim) -> Tensor": masked_mean,
    }
    for signature, function in signatures.items():
        library.define(signature)  # type: ignore[no-untyped-call]
        library.impl(function.__name__, function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    return library


_LIBRARY = _register()
"""The operators stay registered as long as this object exists."""

RANKED_DECISION = torch.ops.vitslim.ranked_decision.default
MASKED_SQUEEZE = torch.ops.vitslim.masked_squeeze.default
MASKED_KEEP = torch.ops.vitslim.masked_keep.default
POLICY_ATTENTION = torch.ops.vitslim.policy_attention.default
MASKED_MEAN = torch.ops.vitslim.masked_mean.default
