"""Attention in plain products: what it computes, and when it is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from vitslim.data import Dataset
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.recipe.stages.training import Train
from vitslim.training import Batch, attention, hard_loss, train
from vitslim.training.attention import FUSED, PlainAttention

SHAPE = (2, 3, 5, 8)
added = torch.linspace(-2, 2, 25).view(5, 5)


def operands(dtype: torch.dtype = torch.bfloat16) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


class Seen(TorchFunctionMode):
    """Which attention reaches PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = self.products = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fused += func is FUSED
        self.products += func is torch.bmm
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "extra",
    [
        {}, {"scale": 0.7}, {"attn_mask": added}, {"attn_mask": added.expand(2, 1, 5, 5)},
        {"attn_mask": added.expand(2, 3, 5, 5), "scale": 0.2},
    ],
)  # fmt: skip
def test_plain_products_give_what_the_fused_operator_gives(extra: dict[str, Any]) -> None:
    exact = operands(torch.float32)
    torch.autograd.backward(scaled_dot_product_attention(*exact, **extra).square().sum())
    short = operands()
    with Seen() as seen, PlainAttention():
        result = FUSED(*short, **extra)
    torch.autograd.backward(result.float().square().sum())
    assert (seen.fused, seen.products) == (0, 2)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), scaled_dot_product_attention(*exact, **extra), atol=0.03, rtol=0.03)
    for ours, theirs in zip(short, exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.float(), theirs.grad, atol=0.08, rtol=0.05)


def test_a_mask_may_stand_in_its_place_or_have_its_name() -> None:
    with Seen() as seen, PlainAttention():
        in_place, named = FUSED(*operands(), added), FUSED(*operands(), attn_mask=added)
    assert (seen.fused, seen.products) == (0, 4)
    torch.testing.assert_close(in_place, named, atol=0, rtol=0)


def test_queries_may_be_fewer_than_keys_and_values_narrower() -> None:
    query, key, value = operands(torch.float32)
    with PlainAttention():
        result = FUSED(query[:, :, :1], key, value[..., :4])
    expected = scaled_dot_product_attention(query[:, :, :1], key, value[..., :4])
    assert result.shape == (2, 3, 1, 4)
    torch.testing.assert_close(result.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("extra", [{"is_causal": True}, {"dropout_p": 0.5}, {"attn_mask": added > 0}])
def test_what_plain_products_do_not_know_stays_fused(extra: dict[str, Any]) -> None:
    with Seen() as seen, PlainAttention():
        FUSED(*operands(), **extra)
    assert (seen.fused, seen.products) == (1, 0)


def test_scores_too_many_to_keep_stay_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    for most, expected in ((2 * 3 * 5 * 5, (0, 2)), (2 * 3 * 5 * 5 - 1, (1, 0))):
        monkeypatch.setattr(attention, "MOST_SCORES", most)
        with Seen() as seen, PlainAttention():
            FUSED(*operands())
        assert (seen.fused, seen.products) == expected


@pytest.mark.parametrize(
    ("config", "plain"), [({"precision": "bfloat16"}, True), ({}, False), ({"precision": "tfloat32"}, False)]
)
def test_training_in_bfloat16_on_a_cpu_uses_plain_products(
    tiny_graph: ModelGraph, some_digits: Dataset, config: dict[str, Any], plain: bool
) -> None:
    def labels_only(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": hard_loss(logits, batch.labels)}

    with Seen() as seen:
        train(tiny_graph.module, some_digits, labels_only, Train(epochs=1, device="cpu", **config), 0, {}, Silent())
    assert (seen.products > 0, seen.fused > 0) == (plain, not plain)
