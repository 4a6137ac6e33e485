"""Attention as SpAtten computes it, against slow references."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from vitslim.graph.approximate.spatten.attention import (
    Operands,
    head_importance,
    probabilities,
    select,
    token_importance,
    upper_values,
    used_values,
)
from vitslim.recipe.accelerators import ProgressiveQuantization


def planes(msb: int, lsb: int, threshold: float = 0.1) -> ProgressiveQuantization:
    return ProgressiveQuantization(msb=msb, lsb=lsb, threshold=threshold)  # type: ignore[arg-type]


def operands(seed: int = 0, alive: torch.Tensor | None = None) -> Operands:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, 9, 8, generator=generator) for _ in range(3))
    return Operands(q, k, v, 8**-0.5, None, alive, alive)


def test_many_bits_without_pruning_are_exact_attention() -> None:
    x, pq = operands(), planes(12, 4, 0.0)
    found, refetched = probabilities(x, pq)
    output = torch.matmul(found, upper_values(x, pq))
    expected = functional.scaled_dot_product_attention(x.q, x.k, x.v)
    assert (output - expected).abs().max() < 2e-3
    assert not refetched.any()


def test_flat_queries_and_only_they_read_low_bits() -> None:
    x = operands()
    low, none = probabilities(x, planes(4, 4, 0.0))
    found, refetched = probabilities(x, planes(4, 4, 0.4))
    whole, every = probabilities(x, planes(4, 4, 1.0))
    assert torch.equal(refetched, low.amax(dim=-1) < 0.4)
    assert refetched.any()
    assert not refetched.all()
    assert every.all()
    assert not none.any()
    assert torch.equal(found, torch.where(refetched[..., None], whole, low))
    exact = torch.softmax(x.q @ x.k.transpose(-2, -1) * x.scale, dim=-1)
    assert (whole - exact).abs().max() < (low - exact).abs().max()


def test_pruned_tokens_do_not_change_the_others() -> None:
    alive = torch.ones(2, 9, dtype=torch.bool)
    alive[:, [2, 5]] = False
    x = operands(alive=alive)
    pq = planes(6, 4)
    found, refetched = probabilities(x, pq)
    kept = torch.arange(9)[alive[0]]
    short = Operands(*(one[:, :, kept] for one in (x.q, x.k, x.v)), x.scale, None, None, None)
    expected, again = probabilities(short, pq)
    assert torch.allclose(found[:, :, kept][..., kept], expected, atol=1e-6)
    assert torch.equal(refetched[:, :, kept], again)
    assert not refetched[:, :, [2, 5]].any()
    assert torch.allclose(upper_values(x, pq)[:, :, kept], upper_values(short, pq))
    assert torch.allclose(
        token_importance(found, None, alive)[:, kept], token_importance(expected, None, None), atol=1e-5
    )


def test_local_value_pruning_keeps_the_largest_probabilities() -> None:
    x = operands()
    found, _ = probabilities(x, planes(12, 0))
    used = used_values(found, 4, None)
    assert (used.sum(dim=-1) == 4).all()
    kept, left = found.masked_fill(~used, 1.0).amin(dim=-1), found.masked_fill(used, 0.0).amax(dim=-1)
    assert (kept >= left).all()
    assert used_values(found, 9, None).all()


def test_importance_is_a_sum_over_heads_and_queries() -> None:
    x = operands()
    found, _ = probabilities(x, planes(12, 0))
    heads = torch.tensor([[True, False, True], [True, True, True]])
    queries = torch.ones(2, 9, dtype=torch.bool)
    queries[0, 3] = False
    scores = token_importance(found, heads, queries)
    slow = torch.zeros(2, 9)
    for image in range(2):
        for head in range(3):
            for query in range(9):
                if heads[image, head] and queries[image, query]:
                    slow[image] += found[image, head, query]
    assert torch.allclose(scores, slow, atol=1e-5)
    magnitudes = head_importance(x.v, queries)
    assert magnitudes[0, 1].item() == pytest.approx(x.v[0, 1, queries[0]].abs().sum().item())


def test_pruned_positions_never_return_and_the_first_ones_always_stay() -> None:
    importance = torch.tensor([[0.0, 5.0, 9.0, 1.0, 2.0]])
    alive = torch.tensor([[True, True, False, True, True]])
    assert select(importance, alive, 3, always=1).tolist() == [[True, True, False, False, True]]
    assert select(importance, None, 2).tolist() == [[False, True, True, False, False]]
