"""Prediction by leading ones and the decisions that follow from it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitslim.data import load_data
from vitslim.graph.approximate import approximate
from vitslim.graph.approximate.fact.decisions import important_tokens, select_entries
from vitslim.graph.approximate.fact.layer import FactLayer
from vitslim.graph.approximate.fact.mixed_linear import mixed_linear
from vitslim.graph.approximate.fact.prediction import leading_one, predicted_linear, predicted_logits
from vitslim.graph.trace import trace_timm
from vitslim.recipe.accelerators import EagerPrediction, FactSettings, MixedFfn
from vitslim.recipe.schema import Data


def test_products_of_leading_ones_are_exact_for_powers_of_two_and_below_by_at_most_four() -> None:
    integers = torch.arange(-127, 128)
    ones = leading_one(integers)
    for a, found in zip(integers.tolist(), ones.tolist(), strict=True):
        assert found == (0 if a == 0 else math.copysign(2 ** math.floor(math.log2(abs(a))), a))
    exact, predicted = torch.outer(integers, integers).float(), torch.outer(ones, ones)
    assert torch.equal(exact.sign(), predicted.sign())
    nonzero = exact != 0
    factor = exact[nonzero] / predicted[nonzero]
    assert factor.min() == 1.0
    assert factor.max() < 4.0


def test_a_layer_of_powers_of_two_is_predicted_up_to_its_constant_factor() -> None:
    x = torch.tensor([[[64.0, -2.0, 127.0]]])
    w = torch.tensor([[127.0, 4.0, 0.0], [0.0, 32.0, 1.0]])
    found = predicted_linear(x, w, None)
    expected = torch.tensor([[[64 * 64.0 - 8, -64.0 + 64]]]) / math.log(2) ** 2
    assert torch.allclose(found, expected)
    assert torch.allclose(predicted_linear(x, w, torch.tensor([1.0, 2.0])), expected + torch.tensor([1.0, 2.0]))


def logits() -> Tensor:
    return torch.randn(2, 3, 7, 10, generator=torch.Generator().manual_seed(0))


def test_rows_select_their_largest_logits_and_always_the_class_token() -> None:
    found = select_entries(logits(), 3, None, 1)
    assert (found.selected.sum(dim=-1) == 3).all()
    assert found.selected[..., 0].all()
    rest = logits()[..., 1:]
    chosen = rest.masked_fill(~found.selected[..., 1:], -100.0).topk(2, dim=-1).values
    assert torch.equal(chosen, rest.topk(2, dim=-1).values)
    assert not found.one_hot.any()


def test_one_hot_rows_use_one_entry_and_every_used_entry_is_generated() -> None:
    found = select_entries(logits(), 3, 0.7, 1)
    assert found.one_hot.any()
    assert (found.used[found.one_hot].sum(dim=-1) == 1).all()
    assert torch.equal(found.used[~found.one_hot], found.selected[~found.one_hot])
    best = logits().argmax(dim=-1)[found.one_hot]
    assert torch.equal(found.used[found.one_hot].float().argmax(dim=-1), best)


def test_important_tokens_have_the_mean_share_of_selections() -> None:
    selected = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    selected[0, 0, :, 2] = True
    selected[0, 0, :2, 3] = True
    assert important_tokens(selected, "mean", 1).tolist() == [[True, False, True, True]]
    assert important_tokens(selected, 0.5, 0).tolist() == [[False, False, True, False]]
    assert important_tokens(selected, 0.0, 0).all()


def test_mixed_layers_are_near_int8_in_important_rows_and_coarser_in_others() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 5, 16, generator=generator), torch.randn(8, 16, generator=generator)
    exact = x @ w.T
    high = torch.tensor([[True, True, False, False, False, True]] * 2)
    for int4_weights in (False, True):
        errors = (mixed_linear(x, w, None, high, int4_weights) - exact).abs().mean(dim=(0, 2))
        assert errors[:2].max() < 0.05
        assert errors[2:].min() > 5 * errors[:2].max()
    eight = mixed_linear(x, w, None, None, False)
    assert torch.allclose(mixed_linear(x, w, None, high, False)[:, :2], eight[:, :2])


def recall(found: Tensor, exact: Tensor, count: int) -> float:
    first, second = (select_entries(one, count, None, 0).selected for one in (found, exact))
    return float((first & second).sum() / second.sum())


def test_random_operands_are_ranked_better_than_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 50, 32, generator=generator) for _ in range(2))
    assert recall(predicted_logits(q, k, 1.0), q @ k.transpose(-2, -1), 10) > 0.6


@pytest.mark.slow
def test_the_predictor_finds_most_entries_of_real_activations(shared_data: Path) -> None:
    graph = trace_timm("deit_tiny_patch16_224", {}, shared_data / "deit_tiny" / "model.safetensors")
    data = load_data(Data(kind="imagefolder", root=str(shared_data / "imagenette")), graph.source, 0)
    images, _ = next(iter(data.train.balanced(8, 0).batches(8)))
    settings = FactSettings(
        ep=EagerPrediction(topk_ratio=1.0, onehot_margin=None), ffn=MixedFfn(hi_fraction=0.0, int4_rate=2)
    )
    product, whole, mass = [], [], []

    def compare(layer: FactLayer, arguments: tuple[object, ...], _: object) -> None:
        (q, k, _v), predicted, _bias, _state = arguments  # type: ignore[misc]
        exact = q @ k.transpose(-2, -1) * layer.scale  # type: ignore[has-type]
        count = math.ceil(0.2 * exact.shape[-1])
        product.append(recall(predicted_logits(q, k, layer.scale), exact, count))  # type: ignore[has-type]
        found = predicted_logits(*predicted, layer.scale)  # type: ignore[has-type]
        whole.append(recall(found, exact, count))
        chosen, best = (select_entries(one, count, None, 0).selected for one in (found, exact))
        weights = torch.softmax(exact, dim=-1)
        mass.append(float((weights * chosen).sum() / (weights * best).sum()))

    found = approximate(graph, settings)
    for layer in found.module.modules():
        if isinstance(layer, FactLayer):
            layer.register_forward_hook(compare)
    found(images)
    mean = [sum(values) / len(values) for values in (product, whole, mass)]
    assert len(product) == 12
    assert mean[0] > 0.89  # products of Q and K alone
    assert mean[1] > 0.8  # Q and K predicted as well
    assert mean[2] > 0.95  # by probability
