"""Unfused attention: its values, and when it replaces the fused operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from vitslim.data import Dataset
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.recipe.train import Train
from vitslim.training import Batch, hard_loss, train
from vitslim.training.forms import attention
from vitslim.training.forms.attention import FUSED, UnfusedAttention

SHAPE = (2, 3, 5, 8)
added = torch.linspace(-2, 2, 25).view(5, 5)


def operands(dtype: torch.dtype = torch.bfloat16) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


class Calls(TorchFunctionMode):
    """Counts the attention operators and matmuls that PyTorch executes."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = self.matmuls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fused += func is FUSED
        self.matmuls += func is torch.bmm
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "extra",
    [
        {}, {"scale": 0.7}, {"attn_mask": added}, {"attn_mask": added.expand(2, 1, 5, 5)},
        {"attn_mask": added.expand(2, 3, 5, 5), "scale": 0.2},
    ],
)  # fmt: skip
def test_unfused_attention_equals_the_fused_operator(extra: dict[str, Any]) -> None:
    exact = operands(torch.float32)
    torch.autograd.backward(scaled_dot_product_attention(*exact, **extra).square().sum())
    short = operands()
    with Calls() as calls, UnfusedAttention():
        result = FUSED(*short, **extra)
    torch.autograd.backward(result.float().square().sum())
    assert (calls.fused, calls.matmuls) == (0, 2)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), scaled_dot_product_attention(*exact, **extra), atol=0.03, rtol=0.03)
    for ours, theirs in zip(short, exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.float(), theirs.grad, atol=0.08, rtol=0.05)


def test_a_mask_may_be_positional_or_named() -> None:
    with Calls() as calls, UnfusedAttention():
        in_place, named = FUSED(*operands(), added), FUSED(*operands(), attn_mask=added)
    assert (calls.fused, calls.matmuls) == (0, 4)
    torch.testing.assert_close(in_place, named, atol=0, rtol=0)


def test_queries_may_be_fewer_than_keys_and_values_narrower() -> None:
    query, key, value = operands(torch.float32)
    with UnfusedAttention():
        result = FUSED(query[:, :, :1], key, value[..., :4])
    expected = scaled_dot_product_attention(query[:, :, :1], key, value[..., :4])
    assert result.shape == (2, 3, 1, 4)
    torch.testing.assert_close(result.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("extra", [{"is_causal": True}, {"dropout_p": 0.5}, {"attn_mask": added > 0}])
def test_unsupported_arguments_stay_fused(extra: dict[str, Any]) -> None:
    with Calls() as calls, UnfusedAttention():
        FUSED(*operands(), **extra)
    assert (calls.fused, calls.matmuls) == (1, 0)


def test_layers_with_too_many_scores_stay_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, expected in ((2 * 3 * 5 * 5, (0, 2)), (2 * 3 * 5 * 5 - 1, (1, 0))):
        monkeypatch.setattr(attention, "SCORES_MAX", limit)
        with Calls() as calls, UnfusedAttention():
            FUSED(*operands())
        assert (calls.fused, calls.matmuls) == expected


@pytest.mark.parametrize(
    ("config", "unfused"), [({"precision": "bfloat16"}, True), ({"precision": "float32"}, False), ({}, False)]
)
def test_training_in_bfloat16_on_a_cpu_uses_unfused_attention(
    tiny_graph: ModelGraph, some_digits: Dataset, config: dict[str, Any], unfused: bool
) -> None:
    def labels_only(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": hard_loss(logits, batch.labels)}

    with Calls() as calls:
        train(tiny_graph.module, some_digits, labels_only, Train(epochs=1, device="cpu", **config), 0, {}, Silent())
    assert (calls.matmuls > 0, calls.fused > 0) == (unfused, not unfused)
