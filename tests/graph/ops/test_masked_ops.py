"""The masked operators of predictor training against loops, and against the operators that gather tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.graph.ops.masked_tokens import (
    masked_mean,
    masked_squeeze,
    policy_attention,
    ranked_decision,
    sampled_decision,
)
from vitslim.graph.ops.squeeze import split_by_score, squeeze_tokens


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def visible(x: torch.Tensor, decision: torch.Tensor) -> torch.Tensor:
    """Gather the prefix tokens and the patch tokens that stay; every image keeps the same number."""
    prefix = x.shape[1] - decision.shape[1]
    kept = [torch.cat([one[:prefix], one[prefix:][d > 0.5]]) for one, d in zip(x, decision, strict=True)]
    return torch.stack(kept)


@pytest.mark.parametrize("keep", [1, 4, 9, 10])
def test_masked_squeeze_equals_the_gathered_squeeze(keep: int) -> None:
    x, score = random(3, 12, 16), random(3, 10, seed=1).sigmoid()
    decision = ranked_decision(score, None, keep)
    assert decision.sum(dim=1).tolist() == [keep] * 3
    masked = masked_squeeze(x, decision, None)
    torch.testing.assert_close(visible(masked, decision), squeeze_tokens(x, score, keep), rtol=0, atol=1e-6)


def test_a_second_masked_squeeze_ignores_tokens_dropped_before() -> None:
    x, first, second = random(2, 13, 8), random(2, 12, seed=1).sigmoid(), random(2, 12, seed=2).sigmoid()
    kept = ranked_decision(first, None, 8)
    once = masked_squeeze(x, kept, None)
    again = ranked_decision(second, kept, 3)
    assert ((again == 0) | (kept == 1)).all()
    twice = masked_squeeze(once, again, kept)
    gathered = squeeze_tokens(x, first, 8)
    scores = torch.gather(second, 1, split_by_score(first, 8)[0])
    torch.testing.assert_close(visible(twice, again), squeeze_tokens(gathered, scores, 3), rtol=0, atol=1e-6)


def attention_by_loops(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, policy: torch.Tensor
) -> torch.Tensor:
    """Attend by the definition, one query at a time, in float64. policy: (B, m)."""
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    out = torch.zeros(batch, heads, queries, v.shape[3], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                logits = [scale * float(q[b, h, i].double() @ k[b, h, j].double()) for j in range(keys)]
                largest = max(logits)
                a = [math.exp(logits[j] - largest) * (1.0 if i == j else float(policy[b, j])) for j in range(keys)]
                total = sum(a) + 1e-6
                for j in range(keys):
                    out[b, h, i] += (a[j] + 1e-6 / keys) / total * v[b, h, j].double()
    return out


def test_policy_attention_follows_the_definition() -> None:
    q, k, v = random(2, 2, 7, 4), random(2, 2, 7, 4, seed=1), random(2, 2, 7, 3, seed=2)
    decision = torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 1, 0, 0]])
    policy = torch.cat([torch.ones(2, 2), decision], dim=1)
    expected = attention_by_loops(q, k, v, 0.5, policy)
    torch.testing.assert_close(policy_attention(q, k, v, 0.5, decision).double(), expected, rtol=1e-5, atol=1e-6)


def test_policy_attention_with_all_tokens_is_attention_up_to_its_epsilon() -> None:
    q, k, v = random(2, 2, 9, 4), random(2, 2, 9, 4, seed=1), random(2, 2, 9, 4, seed=2)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
    torch.testing.assert_close(policy_attention(q, k, v, 0.5, torch.ones(2, 8)), expected, rtol=0, atol=1e-5)


def test_a_dropped_token_changes_no_other_token() -> None:
    q, k, v = random(1, 2, 6, 4), random(1, 2, 6, 4, seed=1), random(1, 2, 6, 4, seed=2)
    decision = torch.tensor([[1.0, 1, 0, 1, 1]])
    changed = v.clone()
    changed[:, :, 3] += 5.0
    difference = policy_attention(q, k, changed, 0.5, decision) - policy_attention(q, k, v, 0.5, decision)
    assert difference[:, :, 3].abs().max() > 0.5
    others = [0, 1, 2, 4, 5]
    assert difference[:, :, others].abs().max() < 1e-4


def test_masked_mean_is_over_the_tokens_that_stay() -> None:
    x, decision = random(2, 6, 4), torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    expected = torch.stack([x[0, [0, 1, 2, 4]].mean(0), x[1, [0, 1, 5]].mean(0)])
    torch.testing.assert_close(masked_mean(x, decision, keepdim=False), expected)
    torch.testing.assert_close(masked_mean(x, decision, keepdim=True), expected[:, None])
    assert torch.equal(masked_mean(x[:, 2:], torch.zeros(2, 4), keepdim=True), torch.zeros(2, 1, 4))


def test_sampled_decisions_follow_the_probabilities_and_stay_dropped() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 0.0]).expand(4, 5000, 2)
    previous = torch.ones(4, 5000)
    previous[:, 2500:] = 0
    decision = sampled_decision(logits, previous)
    assert set(decision.unique().tolist()) == {0.0, 1.0}
    assert decision[:, 2500:].sum() == 0
    assert decision[:, :2500].mean().item() == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item(), abs=0.02)
    assert sampled_decision(logits, None).mean().item() == pytest.approx(0.88, abs=0.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_gradients_reach_the_logits_and_are_finite(seed: int, dropped: float) -> None:
    torch.manual_seed(seed)
    logits = (10 * random(2, 9, 2, seed=seed)).requires_grad_()
    x = random(2, 10, 8, seed=seed + 1)
    previous = (torch.rand(2, 9) > dropped).float()
    decision = sampled_decision(logits, previous)
    squeezed = masked_squeeze(x, decision, previous)
    q = squeezed.unsqueeze(1)
    attended = policy_attention(q, q, q, 0.3, decision)
    (attended.square().sum() + masked_mean(squeezed, decision, keepdim=True).sum()).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    if previous.sum() > 3:
        assert logits.grad.abs().max() > 0


def test_similarities_are_computed_in_float32_under_autocast() -> None:
    x, score = random(2, 20, 16), random(2, 19, seed=1).sigmoid()
    decision = ranked_decision(score, None, 9)
    with torch.autocast("cpu", torch.bfloat16):
        lower = masked_squeeze(x, decision, None)
    torch.testing.assert_close(lower, masked_squeeze(x, decision, None))
