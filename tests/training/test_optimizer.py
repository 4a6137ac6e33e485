"""Learning rates, weight decay, and averages of the weights."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.train import Train
from vitslim.training.optimizer import AveragedWeights, layer_scales, make_optimizer, make_schedule


def rates_of(config: Train, steps: int) -> list[float]:
    """The learning rate of each step, and that after the last one."""
    optimizer = make_optimizer({"weight": torch.nn.Parameter(torch.ones(2, 2))}, config)
    schedule, rates = make_schedule(optimizer, config, steps), []
    for step in range(steps + 1):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedule_warms_up_then_falls_to_zero(schedule: Literal["cosine", "linear"]) -> None:
    rates = rates_of(Train(lr=1.0, warmup=0.1, schedule=schedule), 100)
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[99] < 0.02
    assert rates[100] == 0
    assert rates_of(Train(lr=1.0, warmup=0.9), 1)[0] == 1


def test_schedule_falls_to_the_smallest_learning_rate() -> None:
    rates = rates_of(Train(lr=1e-3, min_lr=1e-4, warmup=0.0), 100)
    assert rates[0] == pytest.approx(1e-3)
    assert rates[50] == pytest.approx((1e-3 + 1e-4) / 2)
    assert rates[100] == pytest.approx(1e-4)


def test_layers_learn_more_slowly_the_earlier_they_are() -> None:
    names = ["pos_embed", "patch_embed.bias", "blocks.0.bias", "blocks.1.bias", "blocks.10.bias", "norm.bias"]
    scales = layer_scales(names, ["blocks.0", "blocks.1", "blocks.10"], 0.5)
    assert scales == dict(zip(names, (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1), strict=True))
    assert set(layer_scales(names, [], 0.5).values()) == {1}


def test_predictors_learn_at_the_full_rate_and_all_other_weights_at_a_fraction() -> None:
    names = (
        "head.weight",
        "head.bias",
        "vitslim.predictor.3.weight",
        "vitslim.predictor.3.bias",
        "vitslim.q.head.scale",
    )
    parameters = {
        name: torch.nn.Parameter(torch.ones(2, 2) if name.endswith("weight") else torch.ones(2)) for name in names
    }
    config = Train(lr=1e-2, backbone_lr=0.01, warmup=0, wd=0.1)
    optimizer = make_optimizer(parameters, config)
    make_schedule(optimizer, config, 10).step_update(0)
    groups = {name: group for group in optimizer.param_groups for name, one in parameters.items()
              if any(one is weight for weight in group["params"])}  # fmt: skip
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(
        dict(zip(names, (1e-4, 1e-4, 1e-2, 1e-2, 0.1), strict=True))
    )
    assert [groups[name]["weight_decay"] for name in names] == [0.1, 0, 0.1, 0, 0]


def test_only_matrices_decay(tiny_graph: ModelGraph) -> None:
    groups = make_optimizer(dict(tiny_graph.module.named_parameters()), Train(wd=0.1)).param_groups
    assert {group["weight_decay"]: min(p.ndim for p in group["params"]) > 1 for group in groups} == {
        0.1: True,
        0.0: False,
    }
    assert sum(len(group["params"]) for group in groups) == len(tiny_graph.parameters())


def test_quantizer_scales_move_in_proportion_to_their_size() -> None:
    moved = []
    for scale in (0.001, 0.1):
        name = "vitslim.q.head.input_scale"
        parameter = torch.nn.Parameter(torch.tensor(scale))
        optimizer = make_optimizer({name: parameter}, Train(lr=1e-3))
        (group,) = optimizer.param_groups
        group["lr"] *= group["lr_scale"]
        (3.0 * parameter).backward()
        optimizer.step()
        moved.append((scale - parameter.item()) / scale)
    assert moved == pytest.approx([0.01, 0.01], rel=1e-3)


def test_averages_start_at_the_weights_and_follow_them() -> None:
    parameters = {"a": torch.nn.Parameter(torch.tensor([1.0, 0.0]))}
    averaged = AveragedWeights(parameters, 0.9)
    for value in (2.0, 3.0):
        with torch.no_grad():
            parameters["a"][0] = value
        averaged.update()
    averaged.copy_to_weights()
    assert parameters["a"].tolist() == pytest.approx([0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 3, 0])


def test_without_a_decay_the_weights_stay() -> None:
    parameters = {"a": torch.nn.Parameter(torch.ones(2))}
    averaged = AveragedWeights(parameters, None)
    averaged.update()
    averaged.copy_to_weights()
    assert averaged.averages == {}
    assert parameters["a"].tolist() == [1, 1]
