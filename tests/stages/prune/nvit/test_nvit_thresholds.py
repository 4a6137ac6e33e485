"""Thresholds, groups and latency credits of NViT, as arithmetic."""

from __future__ import annotations

import pytest
import torch

from vitslim.graph.sketch import Matmul, ModelSketch, Size
from vitslim.stages.prune.model_costs import ModelCosts, PartCost, model_costs
from vitslim.stages.prune.nvit.latency_credit import ranked_scores, scaled_eta, unit_credits
from vitslim.stages.prune.nvit.thresholds import removed_units, threshold_position, unit_groups


def test_the_published_sequence_of_thresholds() -> None:
    assert [threshold_position(step, 32) for step in range(6)] == [0, 1, 3, 5, 7, 9]


def lists(groups: list[torch.Tensor]) -> list[list[int]]:
    return [group.tolist() for group in groups]


def test_units_are_grouped_by_score() -> None:
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert lists(unit_groups(scores, torch.ones(4, dtype=torch.bool), 2)) == [[1, 3], [2, 0]]


def test_removed_units_come_first_whatever_their_score() -> None:
    scores, alive = torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.tensor([False, True, False, True])
    assert lists(unit_groups(scores, alive, 2)) == [[2, 0], [1, 3]]


def test_lengths_after_any_removal_are_multiples_of_the_group() -> None:
    """Seven units in groups of three: the first group takes the one that is over."""
    groups = unit_groups(torch.arange(7.0), torch.ones(7, dtype=torch.bool), 3)
    assert lists(groups) == [[0], [1, 2, 3], [4, 5, 6]]


def test_groups_up_to_the_threshold_are_removed_and_the_last_group_stays() -> None:
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 5.0])}
    groups = {axis: unit_groups(values, torch.ones(2, dtype=torch.bool), 1) for axis, values in scores.items()}
    assert {a: u.tolist() for a, u in removed_units(groups, scores, 0).items()} == {"a": [0]}
    # Position 1 is the last group of "a", which stays; position 9 is beyond the end.
    assert {a: u.tolist() for a, u in removed_units(groups, scores, 1).items()} == {"a": [0]}
    assert {a: u.tolist() for a, u in removed_units(groups, scores, 9).items()} == {"a": [0], "b": [0]}
    assert removed_units({}, {}, 3) == {}


def costs_of(**slopes: float) -> ModelCosts:
    """A cost that is linear in every axis of 8 units."""
    parts = {axis: PartCost(frozenset([axis]), lambda lengths, a=axis, s=slope: s * lengths.get(a, 8))  # type: ignore[misc]
             for axis, slope in slopes.items()}  # fmt: skip
    return ModelCosts(parts, dict.fromkeys(slopes, 8), {"block": tuple(slopes)})


def test_the_credit_is_the_cost_of_one_unit_and_ends_at_the_floor() -> None:
    costs = costs_of(a=0.5, b=2.0)
    assert unit_credits(costs, {"a": 8, "b": 8}, {"a": 2, "b": 2}, 0.1) == pytest.approx({"a": 0.05, "b": 0.2})
    assert unit_credits(costs, {"a": 2, "b": 1}, {"a": 2, "b": 2}, 0.1) == {"a": 0.0, "b": 0.0}


def test_eta_keeps_the_published_balance() -> None:
    assert scaled_eta(5e-4, 0.0808) == pytest.approx(5e-4)
    assert scaled_eta(5e-4, 808.0) == pytest.approx(5e-8)


def test_a_larger_eta_never_lowers_the_total_credit_of_the_removed_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = ("a", "b", "c")
    saliency = {axis: torch.rand(8, generator=generator).double() for axis in axes}
    costs = costs_of(a=1.0, b=3.0, c=0.2)
    lengths, floors = dict.fromkeys(axes, 8), dict.fromkeys(axes, 1)
    plain = unit_credits(costs, lengths, floors, 1.0)

    def removed_credit(eta: float, position: int) -> tuple[int, float]:
        scores = ranked_scores(saliency, unit_credits(costs, lengths, floors, eta))
        groups = {axis: unit_groups(values, torch.ones(8, dtype=torch.bool), 1) for axis, values in scores.items()}
        lost = removed_units(groups, scores, position)
        return sum(map(len, lost.values())), sum(plain[axis] * len(units) for axis, units in lost.items())

    for position in range(5):
        found = [removed_credit(eta, position) for eta in (0.0, 0.05, 0.2, 1.0, 5.0)]
        same = [credit for count, credit in found if count == position + 1]
        assert same == sorted(same)


def test_the_parts_of_a_cost_add_up_and_savings_are_differences() -> None:
    n, m = Size.axis("n"), Size.axis("m")
    matmuls = (
        Matmul("a", Size.of(1), Size.of(4), n, m, "a.weight", "b.0", "fc1", frozenset(["b.0.mlp"])),
        Matmul("h", Size.of(1), Size.of(1), n, Size.of(10), "h.weight", "", "head"),
    )
    sketch = ModelSketch({"n": 8, "m": 6}, {"n": "embed", "m": "mlp"}, {}, matmuls, {}, ("b.0",), {}, 0)
    costs = model_costs(sketch, "macs", ["n", "m"], None)
    assert costs.dense == 4 * 8 * 6 + 80 == sketch.cost().macs
    assert costs.saving({}, "m") == 32
    assert costs.saving({"m": 3}, "n") == 4 * 3 + 10
    assert costs.of({"n": 4}, removed=["b.0.mlp"]) == 40
    with pytest.raises(ValueError, match="needs a table"):
        model_costs(sketch, "latency", ["n"], None)
