"""Whole graphs as SpAtten and FACT compute them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.approximate import approximate, approximation_obstacle, run_approximation, with_approximation
from vitslim.graph.decompose import decompose_attention
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.recipe.accelerators import (
    Accelerator,
    Cascade,
    EagerPrediction,
    FactSettings,
    LocalValues,
    MixedFfn,
    ProgressiveQuantization,
    SpattenSettings,
)
from vitslim.results.accelerator_counts import FactCounts, SpattenCounts

TOKENS, HEADS = 17, 2


def spatten(token: float = 0.0, head: float = 0.0, value: float = 0.0, **pq: Any) -> SpattenSettings:
    planes = {"msb": 12, "lsb": 0, "threshold": 0.1} | pq
    return SpattenSettings(
        token=Cascade(pruning_ratio=token, start_ratio=None, free_layers=0.0),
        head=Cascade(pruning_ratio=head, start_ratio=None, free_layers=0.0),
        value=LocalValues(pruning_ratio=value), pq=ProgressiveQuantization(**planes),
    )  # fmt: skip


def fact(ratio: float = 1.0, margin: float | None = None, high: Any = 0.0, rate: Any = 2) -> FactSettings:
    ep = EagerPrediction(topk_ratio=ratio, onehot_margin=margin)
    return FactSettings(ep=ep, ffn=MixedFfn(hi_fraction=high, int4_rate=rate))


def images(number: int = 3) -> torch.Tensor:
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def change(graph: ModelGraph, settings: Accelerator) -> float:
    """Largest change of a logit, relative to the largest logit."""
    with torch.no_grad():
        exact = graph.module.eval()(images())
    found, _, _ = approximate(graph, settings)(images())
    return float((found - exact).abs().max() / exact.abs().max())


def spatten_counts(graph: ModelGraph, settings: SpattenSettings) -> SpattenCounts:
    _, counts = run_approximation(approximate(graph, settings), images().split(2))
    assert isinstance(counts, SpattenCounts)
    return counts


def fact_counts(graph: ModelGraph, settings: FactSettings) -> FactCounts:
    _, counts = run_approximation(approximate(graph, settings), images().split(2))
    assert isinstance(counts, FactCounts)
    return counts


def test_without_pruning_only_rounding_changes_the_logits(tiny_graph: ModelGraph) -> None:
    assert change(tiny_graph, spatten()) < 2e-3
    assert change(tiny_graph, fact()) < 0.05
    assert change(tiny_graph, spatten(token=0.5)) > 5e-3


def test_decomposed_attention_is_rewritten_alike(tiny_graph: ModelGraph) -> None:
    decomposed = tiny_graph.copy()
    decompose_attention(decomposed)
    decomposed.forget_axes()
    for settings in (spatten(token=0.3, value=0.3, msb=6, lsb=4), fact(0.3, 3.0, "mean")):
        first, second = (approximate(one, settings)(images())[0] for one in (tiny_graph, decomposed))
        assert torch.allclose(first, second, atol=1e-4)


def test_counts_of_spatten_follow_its_schedule(tiny_graph: ModelGraph) -> None:
    counts = spatten_counts(tiny_graph, spatten(token=0.3, head=0.5, value=0.5, msb=6, lsb=4, threshold=1.0))
    left = (TOKENS, 12)
    assert counts.tokens_after.tolist() == [[12, 12]] * 3
    for layer, heads in enumerate((HEADS, 1)):
        active = counts.queries[:, layer] > 0
        assert (active.sum(axis=1) == heads).all()
        for found in (counts.queries, counts.keys, counts.refetched):
            assert (found[:, layer][active] == left[layer]).all()
        assert (counts.values[:, layer][active] == (left[layer] + 1) // 2).all()
        assert (counts.value_rows[:, layer][active] <= left[layer]).all()
        for found in (counts.queries, counts.keys, counts.values, counts.value_rows, counts.refetched):
            assert (found[:, layer][~active] == 0).all()


def test_counts_and_logits_of_an_image_do_not_depend_on_its_batch(tiny_graph: ModelGraph) -> None:
    for settings in (spatten(token=0.3, value=0.5, msb=6, lsb=4, threshold=0.2), fact(0.2, 1.0, "mean")):
        found = approximate(tiny_graph, settings)
        together, counts, _ = found(images())
        for place, image in enumerate(images().split(1)):
            alone, one, _ = found(image)
            assert torch.allclose(together[place], alone[0], atol=1e-4)
            for name in one.__dataclass_fields__:
                assert np.array_equal(getattr(counts, name)[place], getattr(one, name)[0])


def test_counts_of_fact_obey_its_invariants(tiny_graph: ModelGraph) -> None:
    counts = fact_counts(tiny_graph, fact(0.2, 0.5, "mean"))
    per_row = 4
    assert (counts.entries == counts.rows * per_row).all()
    assert (counts.rows <= HEADS * TOKENS).all()
    assert (counts.columns <= HEADS * TOKENS).all()
    assert (counts.columns >= HEADS * per_row - HEADS).all()
    assert ((counts.high_tokens >= 1) & (counts.high_tokens < TOKENS)).all()
    dense = fact_counts(tiny_graph, fact())
    assert (dense.entries == HEADS * TOKENS**2).all()
    assert (dense.columns == HEADS * TOKENS).all()
    assert (dense.rows == HEADS * TOKENS).all()
    assert (dense.high_tokens == TOKENS).all()


def test_each_block_of_fact_changes_the_logits(tiny_graph: ModelGraph) -> None:
    base = approximate(tiny_graph, fact())(images())[0]
    for settings in (fact(0.2), fact(1.0, 0.0), fact(0.2, None, "mean"), fact(0.2, None, "mean", 4)):
        assert not torch.allclose(approximate(tiny_graph, settings)(images())[0], base, atol=1e-4)


def test_a_model_that_averages_its_tokens_averages_those_that_are_left(tiny_kwargs: dict[str, Any]) -> None:
    kwargs = {**tiny_kwargs, "global_pool": "avg", "class_token": False, "fc_norm": True}
    graph = trace_timm("vit_tiny_patch16_224", kwargs)
    counts = spatten_counts(graph, spatten(token=0.5))
    assert counts.keys[0].tolist() == [[16, 16], [8, 8]]
    module = with_approximation(graph.module, graph, spatten(token=0.5)).eval()
    assert any("masked_mean" in str(node.target) for node in module.graph.nodes)


def test_tokens_that_were_squeezed_before_the_mlp_carry_their_importance(tiny_graph: ModelGraph) -> None:
    squeezed = insert_squeeze(tiny_graph, {"blocks.0": 7})
    counts = fact_counts(squeezed, fact(0.2, None, "mean"))
    assert (counts.high_tokens <= 8).all()
    assert (fact_counts(squeezed, fact()).high_tokens == 8).all()
    assert spatten_counts(squeezed, spatten()).keys[0].tolist() == [[17, 17], [8, 8]]
    assert "already reduces" in approximation_obstacle(squeezed, spatten(token=0.1))


@pytest.mark.parametrize("settings", [spatten(token=0.3, head=0.5, value=0.3, msb=4, lsb=4), fact(0.3, 3.0, "mean")])
def test_gradients_reach_every_parameter(tiny_graph: ModelGraph, settings: Accelerator) -> None:
    module = with_approximation(tiny_graph.module, tiny_graph, settings)
    module(images()).square().sum().backward()
    missing = [name for name, weight in tiny_graph.module.named_parameters()
               if weight.grad is None or not torch.isfinite(weight.grad).all()]  # fmt: skip
    assert missing == []


@pytest.mark.parametrize(
    ("model", "kwargs", "reason"),
    [
        ("resnet10t", {}, "no attention"),
        pytest.param(
            "swin_tiny_patch4_window7_224",
            {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 1, 1)},
            "windows",
            marks=pytest.mark.slow,
        ),
        ("beit_base_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 2}, "bias for each pair"),
    ],
)
def test_models_that_no_accelerator_computes_are_refused(model: str, kwargs: dict[str, Any], reason: str) -> None:
    graph = trace_timm(model, kwargs)
    for settings in (spatten(), fact()):
        assert reason in approximation_obstacle(graph, settings)
    with pytest.raises(StageError, match=reason):
        approximate(graph, spatten())
