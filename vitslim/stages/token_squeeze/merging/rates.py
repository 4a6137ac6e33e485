"""Differentiable rates (after DiffRate, Chen et al., ICCV 2023, arXiv 2305.17997).

A rate is the fraction of tokens that a block removes. It is the expectation over equally spaced candidates, whose
probabilities are a softmax of learnable logits. In each training step all logits are tilted by one multiplier, so that
the expected rates meet the number of MACs exactly; the paper has a penalty instead.

A mask over ranks says which tokens stay. The paper's straight-through gradient, the derivative at 0 and at 1, says
little about removing a token, because attention hardly changes before its weight is close to 0. So in training some
tokens around the boundary have a random weight in (0, 1): in expectation, the gradient is then the change of the loss
from keeping to removing them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SPREAD = 0.05
"""Standard deviation of the initial probabilities around the initial rate."""
TILT_MAX = 1000.0
"""Largest multiplier of the candidate rates that is tried."""
HALVINGS = 40


def candidate_rates(count: int, device: torch.device | None = None) -> Tensor:
    """Return `count` rates from 0 in equal steps to 1 - 1 / count: float32 (count,)."""
    return torch.arange(count, device=device) / count


def initial_logits(rate: float, count: int) -> Tensor:
    """Return logits of probabilities concentrated around a rate in [0, 1): float32 (count,)."""
    return -0.5 * ((candidate_rates(count) - rate) / SPREAD).square()


def expected_rates(logits: Tensor) -> Tensor:
    """Return the mean of the candidates: (..., K) to (...)."""
    return torch.softmax(logits, dim=-1) @ candidate_rates(logits.shape[-1], logits.device)


def tilted(logits: Tensor, macs: Callable[[Tensor], Tensor], target: float) -> Tensor:
    """Return logits plus a multiple of the candidate rates, so that `macs` of the expected rates equals `target`.

    logits: (n, K). macs: maps rates (n,) to a scalar that falls as rates rise. The multiple is differentiable: it is
    found by bisection, and one Newton step gives its gradient.
    """
    rates = candidate_rates(logits.shape[-1], logits.device)
    low, high = -TILT_MAX, TILT_MAX
    with torch.no_grad():
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if macs(expected_rates(logits + middle * rates)) > target else (low, middle)
    with torch.enable_grad():
        multiple = torch.tensor((low + high) / 2, device=logits.device, requires_grad=True)
        (slope,) = torch.autograd.grad(macs(expected_rates(logits.detach() + multiple * rates)), multiple)
    distance = macs(expected_rates(logits + multiple.detach() * rates)) - target
    newton = distance / slope if float(slope) else 0.0  # no candidate is left to choose from
    return logits + (multiple.detach() - newton) * rates


def kept_count(rate: float, tokens: int) -> int:
    """Return how many of `tokens` tokens stay, at least one."""
    return max(1, round(tokens * (1 - rate)))


def kept_tokens(rate: Tensor, tokens: Tensor) -> Tensor:
    """Return `kept_count` as a scalar with the gradient of `tokens * (1 - rate)`. tokens: a whole number."""
    expected = tokens * (1 - rate)
    return expected + (kept_count(float(rate.detach()), int(tokens)) - expected).detach()


def rank_mask(kept: Tensor, ranks: int, width: int, root: float) -> Tensor:
    """Return the weight of each rank, most important first: ones, `width` equal weights around the boundary, and zeros.

    kept: number of tokens that stay, a scalar. Weights at the boundary are `root` squared, with root in [0, 1]; there
    are none if width is 0. With uniform roots, the expected gradient with regard to `kept` is the change of the loss
    for a token more. Squares make it less noisy: most of the change is close to 0. Returns (ranks,).
    """
    rank = torch.arange(ranks, device=kept.device) + 0.5
    first = max(int(kept) - width / 2, 1.0)
    last = min(int(kept) + width / 2, float(ranks))
    inside = (rank > first) & (rank < last) if width else torch.zeros_like(rank, dtype=torch.bool)
    weight = root**2 + 2 * root * (kept - kept.detach()) / max(1, int(inside.sum()))
    return (rank < (first if width else int(kept))).to(kept.dtype) + inside.to(kept.dtype) * weight
