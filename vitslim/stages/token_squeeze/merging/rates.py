"""Differentiable rates (DiffRate, Chen et al., ICCV 2023, arXiv 2305.17997).

A rate is the fraction of tokens that a block removes. It is the expectation over equally spaced candidates, whose
probabilities are a softmax of learnable logits. The tokens that stay are a hard mask over ranks; its gradient is that
of the probability that a rank stays (straight-through).
"""

from __future__ import annotations

import torch
from torch import Tensor

SPREAD = 0.05
"""Standard deviation of the initial probabilities around the initial rate."""


def candidate_rates(count: int, device: torch.device | None = None) -> Tensor:
    """Return `count` rates from 0 in equal steps to 1 - 1 / count: float32 (count,)."""
    return torch.arange(count, device=device) / count


def initial_logits(rate: float, count: int) -> Tensor:
    """Return logits of probabilities concentrated around a rate in [0, 1): float32 (count,)."""
    return -0.5 * ((candidate_rates(count) - rate) / SPREAD).square()


def expected_rate(logits: Tensor) -> Tensor:
    """Return the mean of the candidates: (K,) to a scalar."""
    return torch.softmax(logits, dim=0) @ candidate_rates(len(logits), logits.device)


def kept_count(rate: float, tokens: int) -> int:
    """Return how many of `tokens` tokens stay, at least one."""
    return max(1, round(tokens * (1 - rate)))


def keep_mask(logits: Tensor, tokens: int) -> Tensor:
    """Return which ranks stay, most important first: float (tokens,), ones and then zeros.

    The number of ones is `kept_count` of the expected rate. The gradient is that of the probability that a rank is
    below the number of tokens that a candidate leaves.
    """
    rates = candidate_rates(len(logits), logits.device)
    ranks = torch.arange(tokens, device=logits.device)
    stays = ranks[:, None] < (tokens * (1 - rates)).round().clamp(min=1)
    probability = stays.to(logits.dtype) @ torch.softmax(logits, dim=0)
    hard = (ranks < kept_count(float(expected_rate(logits).detach()), tokens)).to(logits.dtype)
    return hard + probability - probability.detach()
