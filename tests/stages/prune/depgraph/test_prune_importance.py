"""The mathematics of scores and of group-sparsity training: known values and properties. No model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vitslim.recipe.stages.prune import IMPORTANCES as NAMES
from vitslim.stages.prune.depgraph.group_sparsity import GroupRegularizer, group_strengths, regularization_gradient
from vitslim.stages.prune.depgraph.groups import Member, group_scores, member_scores, normalized, slice_sums
from vitslim.stages.prune.depgraph.importance import IMPORTANCES, hessian, lamp, magnitude_l1, magnitude_l2
from vitslim.stages.prune.depgraph.lengths import keep_count, least_count

SCORES = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=20).map(lambda x: torch.tensor(x).double())


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values).double()


def test_the_recipe_names_every_importance() -> None:
    assert IMPORTANCES.keys() == NAMES.keys()
    assert {name for name, importance in IMPORTANCES.items() if importance.uses_images} == {"taylor", "hessian"}


def test_element_scores_of_known_weights() -> None:
    weight = torch.tensor([[-3.0, 0.0], [1.0, 2.0]])
    assert magnitude_l1(weight).tolist() == [[3.0, 0.0], [1.0, 2.0]]
    assert magnitude_l2(weight).tolist() == [[9.0, 0.0], [1.0, 4.0]]
    assert hessian(weight, torch.tensor([[2.0, 5.0], [3.0, 0.5]])).tolist() == [[18.0, 0.0], [3.0, 2.0]]


def test_a_head_scores_the_mean_of_its_channels() -> None:
    """Two heads of three channels each; the second dimension is summed, the channels are averaged."""
    weight = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 0.0], [0.0, 0.0], [6.0, 0.0], [0.0, 3.0]])
    index = torch.tensor([0, 0, 0, 1, 1, 1])
    assert member_scores(slice_sums(weight, 0), index, 2).tolist() == [7 / 3, 3.0]


def test_slice_sums_do_not_lose_small_scores() -> None:
    elements = torch.full((2, 1 << 16), 1e-3)
    elements[:, 0] = 1e5
    assert slice_sums(elements, 0).tolist() == pytest.approx([1e5 + 65.535] * 2, rel=1e-7)


def test_a_group_has_the_mean_score_of_its_members() -> None:
    assert group_scores([doubles(1, 7), doubles(3, 1)]).tolist() == [2, 4]


def test_normalized_scores_have_mean_one() -> None:
    assert normalized(doubles(1, 3)).tolist() == pytest.approx([0.5, 1.5])
    assert normalized(doubles(0, 0)).tolist() == [0, 0]


def test_lamp_of_known_scores() -> None:
    assert lamp(doubles(4, 1, 3)).tolist() == [1.0, 1 / 8, 3 / 7]
    assert lamp(doubles(2, 2)).tolist() == [0.5, 1.0]
    assert lamp(doubles(0, 0, 5)).tolist() == [0.0, 0.0, 1.0]
    assert lamp(doubles(0, 0)).tolist() == [0.0, 0.0]


@given(SCORES)
@settings(deadline=None)
def test_lamp_keeps_the_order(scores: torch.Tensor) -> None:
    found = lamp(scores)
    order = torch.sort(scores, stable=True).indices
    assert (found[order].diff() >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()


def test_strengths_of_known_scores() -> None:
    """`I = sqrt(score)` is 0, 1 and 2: strengths 16, 4 and 1."""
    strengths = group_strengths(doubles(0, 1, 4), alpha=4.0)
    assert strengths is not None
    assert strengths.tolist() == [16.0, 4.0, 1.0]


@pytest.mark.parametrize("scores", [doubles(3, 3, 3), doubles(1), doubles(1, torch.nan), doubles(1, torch.inf)])
def test_no_strengths_without_a_weakest(scores: torch.Tensor) -> None:
    assert group_strengths(scores, 4.0) is None


def test_regularization_of_a_weight_sums_over_its_groups() -> None:
    weight = torch.tensor([[1.0, 2.0], [-3.0, 0.0]])
    rows, columns = torch.tensor([1.0, 10.0]), torch.tensor([100.0, 0.0])
    assert regularization_gradient(weight, [(0, rows), (1, columns)], 0.5).tolist() == [[50.5, 1.0], [-165.0, 0.0]]


def test_the_regularizer_adds_to_gradients_of_members_alone() -> None:
    """One axis of two indices, the rows of `a` (0 absent) and of `b`; scores (0 + 4) / 2 and (16 + 4) / 2."""
    a, b, c = (nn.Parameter(torch.tensor(value)) for value in ([9.0, 0.0, 4.0], [2.0, 2.0], [1.0, 1.0]))
    parameters = {"a": a, "b": b, "c": c}
    members = [Member("x", 2, "a", 0, torch.tensor([-1, 0, 1])), Member("x", 2, "b", 0, torch.tensor([0, 1]))]
    for weight in parameters.values():
        weight.grad = torch.ones_like(weight)
    GroupRegularizer(members, parameters, gamma=0.25, alpha=1.0).after_backward()
    assert [weight.grad.tolist() for weight in parameters.values() if weight.grad is not None] == [
        [1.0, 1.0, 2.0], [2.0, 1.5], [1.0, 1.0]
    ]  # fmt: skip


def test_the_regularizer_skips_groups_of_equal_scores() -> None:
    weight = nn.Parameter(torch.tensor([2.0, -2.0]))
    weight.grad = torch.zeros(2)
    member = Member("x", 2, "a", 0, torch.tensor([0, 1]))
    GroupRegularizer([member], {"a": weight}, gamma=1.0, alpha=4.0).after_backward()
    assert weight.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("size", "max_ratio", "step", "least"),
    [(64, 0.4, 16, 48), (64, 0.95, 16, 16), (768, 0.95, 16, 48), (10, 0.9, 1, 1), (20, 0.1, 16, 20), (7, 0.0, 1, 7)],
)
def test_least_count(size: int, max_ratio: float, step: int, least: int) -> None:
    assert least_count(size, max_ratio, step) == least


@given(st.integers(1, 2000), st.floats(0, 0.999), st.integers(1, 32))
def test_least_count_loses_no_more_than_it_may(size: int, max_ratio: float, step: int) -> None:
    least = least_count(size, max_ratio, step)
    assert size * (1 - max_ratio) <= least + 1e-9
    assert least == size or least >= keep_count(size, max_ratio, step)
