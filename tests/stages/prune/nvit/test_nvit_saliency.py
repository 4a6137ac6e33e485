"""Saliency of structural units: the square of a sum, averages and momentum, and its order against brute force."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitslim.backends.gemm_errors import rank_correlation
from vitslim.graph.model_graph import ModelGraph
from vitslim.stages.prune.nvit.saliency import (
    Linked,
    RunningSaliency,
    gate_scaling,
    linked_parameters,
    published_scaling,
    unit_saliency,
)
from vitslim.stages.prune.nvit.units import parameter_masks

ONE = {"axis": 1.0}


def linear(weight: torch.Tensor, gradient: torch.Tensor) -> tuple[list[Linked], dict[str, nn.Parameter]]:
    parameter = nn.Parameter(weight)
    parameter.grad = gradient
    return [Linked("axis", len(weight), "fc.weight", 0, torch.arange(len(weight)))], {"fc.weight": parameter}


def test_the_score_is_the_square_of_the_sum() -> None:
    """Products 2 and -3 in one unit: (2 - 3)^2 = 1, while the sum of squares is 13."""
    found = unit_saliency(*linear(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, -1.0]])), ONE)
    assert found["axis"].tolist() == [1.0]


def test_a_divisor_acts_before_the_square() -> None:
    members, parameters = linear(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 2.0]]))
    assert unit_saliency(members, parameters, {"axis": 2.0})["axis"].tolist() == [16.0]


def test_sums_that_are_not_finite_count_as_zero() -> None:
    gradient = torch.tensor([[float("nan"), 1.0], [2.0, 2.0]])
    assert unit_saliency(*linear(torch.ones(2, 2), gradient), ONE)["axis"].tolist() == [0.0, 16.0]


def test_a_parameter_without_gradient_counts_as_zero() -> None:
    members, parameters = linear(torch.ones(2, 2), torch.ones(2, 2))
    parameters["fc.weight"].grad = None
    assert unit_saliency(members, parameters, ONE)["axis"].tolist() == [0.0, 0.0]


def test_batches_are_averaged_and_steps_are_smoothed() -> None:
    running = RunningSaliency(0.9)
    for value in (1.0, 3.0):
        running.add({"axis": torch.tensor([value]).double()})
    assert running.update()["axis"].tolist() == pytest.approx([0.2])
    running.add({"axis": torch.tensor([10.0]).double()})
    assert running.update()["axis"].tolist() == pytest.approx([0.9 * 0.2 + 1.0])
    running.reset()
    running.add({"axis": torch.tensor([10.0]).double()})
    assert running.update()["axis"].tolist() == pytest.approx([1.0])


def test_scalings_of_a_vit(tiny_graph: ModelGraph) -> None:
    kinds = {"embed": "embed", "blocks.0.heads": "heads", "blocks.0.qk": "qk", "blocks.0.mlp": "mlp"}
    linked = linked_parameters([tiny_graph.axes[name] for name in kinds], tiny_graph.parameters())
    published, gate = published_scaling(linked, kinds, blocks=2), gate_scaling(linked, kinds)
    assert published.divisor == {"embed": 2, "blocks.0.heads": 6, "blocks.0.qk": 2, "blocks.0.mlp": 1}
    assert gate.divisor == {"embed": 1, "blocks.0.heads": 1, "blocks.0.qk": 2, "blocks.0.mlp": 1}

    def names(found: tuple[Linked, ...], axis: str) -> set[str]:
        return {one.parameter.removeprefix("blocks.0.") for one in found if one.axis == axis}

    assert names(published.linked, "blocks.0.heads") == {"attn.qkv.weight", "attn.qkv.bias"}
    assert names(gate.linked, "blocks.0.heads") == {"attn.proj.weight"}
    assert names(gate.linked, "blocks.0.mlp") == {"mlp.fc2.weight"}
    assert {"cls_token", "pos_embed", "norm1.bias"} <= names(published.linked, "embed")


def test_queries_and_keys_have_equal_sums(tiny_graph: ModelGraph) -> None:
    """The logits are bilinear: scaling a dim of the queries is scaling it in the keys, so half of both is the gate."""
    gradients_of(tiny_graph)
    weights = tiny_graph.parameters()
    sums = sum(
        (weights[f"blocks.0.attn.qkv.{name}"].detach() * weights[f"blocks.0.attn.qkv.{name}"].grad)
        .view(3, 2, 32, -1)[:2]
        .sum(dim=(1, 3))
        for name in ("weight", "bias")
    )
    assert torch.allclose(sums[0], sums[1], atol=1e-6)


def gradients_of(graph: ModelGraph) -> float:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (16,), generator=generator)
    loss = nn.functional.cross_entropy(graph.module(images), labels)
    loss.backward()
    return float(loss)


@pytest.mark.parametrize("axis", ["blocks.0.mlp", "blocks.1.v"])
def test_the_order_agrees_with_brute_force_removal(tiny_graph: ModelGraph, axis: str) -> None:
    """Each unit is zeroed by itself; the squared change of the loss has the order of the saliencies."""
    loss = gradients_of(tiny_graph)
    parameters = tiny_graph.parameters()
    linked = linked_parameters([tiny_graph.axes[axis]], parameters)
    scaling = gate_scaling(linked, {axis: axis.rpartition(".")[2]})
    found = unit_saliency(scaling.linked, parameters, scaling.divisor)[axis]
    changes = []
    for unit in range(0, len(found), len(found) // 32):
        alive = torch.ones(len(found), dtype=torch.bool)
        alive[unit] = False
        probe = tiny_graph.copy()
        with torch.no_grad():
            for name, mask in parameter_masks(linked, {axis: alive}, parameters).items():
                probe.parameters()[name].mul_(mask)
        changes.append((gradients_of(probe) - loss) ** 2)
    sample = found[:: len(found) // 32].numpy()
    assert rank_correlation(sample, torch.tensor(changes).double().numpy()) >= 0.9
