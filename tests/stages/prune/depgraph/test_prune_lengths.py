"""Lengths of pruned axes, and the scores of groups. No model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.stages.prune.depgraph.groups import group_scores, member_scores, normalized, slice_sums
from vitslim.stages.prune.depgraph.importance import magnitude_l2, taylor
from vitslim.stages.prune.depgraph.lengths import keep_count, kept_indices, step_of


@given(st.integers(1, 4096), st.floats(0, 0.999), st.floats(0, 0.999), st.integers(1, 64))
def test_keep_count_is_monotone_and_on_the_grid(size: int, one: float, other: float, step: int) -> None:
    low, high = sorted((one, other))
    less, more = keep_count(size, high, step), keep_count(size, low, step)
    assert 0 < less <= more <= size
    assert less % step == 0 or less == size


@given(st.integers(1, 512), st.sampled_from([0.1, 0.25, 0.5, 0.75]), st.integers(1, 32))
def test_keep_count_grows_with_the_size(size: int, ratio: float, step: int) -> None:
    assert keep_count(size, ratio, step) <= keep_count(size + 1, ratio, step)


@pytest.mark.parametrize(
    ("size", "ratio", "step", "kept"),
    [
        (768, 0.54, 1, 353),
        (64, 0.54, 1, 29),
        (3072, 0.54, 1, 1413),
        (768, 0.5, 16, 384),
        (10, 0.9, 1, 1),
        (20, 0.5, 16, 16),
        (40, 0.5, 16, 16),
        (16, 0.5, 16, 16),
        (7, 0.99, 1, 1),
        (100, 0.0, 1, 100),
    ],
)
def test_keep_count_of_known_sizes(size: int, ratio: float, step: int, kept: int) -> None:
    assert keep_count(size, ratio, step) == kept


@pytest.mark.parametrize(
    ("counts", "step"), [([1], 16), ([3], 16), ([4], 4), ([6, 6], 8), ([12], 4), ([16], 1), ([1, 4], 16), ([], 1)]
)
def test_step_makes_layer_sizes_multiples(counts: list[int], step: int) -> None:
    assert step_of(16, counts) == step


@given(st.integers(1, 32), st.lists(st.integers(1, 24), min_size=1, max_size=3))
def test_step_is_the_finest(round_to: int, counts: list[int]) -> None:
    step = step_of(round_to, counts)
    fits = [s for s in range(1, round_to + 1) if all(s * count % round_to == 0 for count in counts)]
    assert step == fits[0]


def test_kept_indices_are_ascending_and_ties_keep_the_lower() -> None:
    assert kept_indices(torch.tensor([1.0, 5.0, 1.0, 5.0, 1.0]), 3) == (0, 1, 3)
    assert kept_indices(torch.zeros(6), 2) == (0, 1)
    assert kept_indices(torch.tensor([0.0, 1.0, 9.0, 3.0]), 2) == (2, 3)


SITES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))


@given(SITES)
@settings(deadline=None)
def test_scores_follow_a_permutation_of_the_axis(case: tuple[int, int, int]) -> None:
    size, repeats, seed = case
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size * repeats, 5, generator=generator)
    index = torch.arange(size).repeat(repeats)
    order = torch.randperm(size, generator=generator)
    scores = member_scores(slice_sums(magnitude_l2(weight), 0), index, size)
    renamed = member_scores(slice_sums(magnitude_l2(weight), 0), order[index], size)
    torch.testing.assert_close(renamed[order], scores)


def test_a_member_averages_repeats_and_ignores_absent_indices() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [7.0, 7.0]])
    index = torch.tensor([0, 1, 0, -1])
    assert member_scores(slice_sums(magnitude_l2(weight), 0), index, 2).tolist() == [3.0, 9.0]
    assert slice_sums(magnitude_l2(weight), 1).tolist() == [59.0, 54.0]
    assert slice_sums(torch.tensor([1.0, 2.0]), 0).tolist() == [1.0, 2.0]


def test_taylor_is_elementwise() -> None:
    """`sum |w g|`, not `|sum w g|`: opposite effects of one slice do not cancel."""
    weight, gradient = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, -2.0]])
    assert slice_sums(taylor(weight, gradient), 0).tolist() == [4.0]


def test_group_score_is_the_mean_of_members_over_the_mean_of_indices() -> None:
    scores = group_scores([torch.tensor([1.0, 3.0]).double(), torch.tensor([3.0, 9.0]).double()])
    assert normalized(scores).tolist() == [0.5, 1.5]
    assert normalized(torch.zeros(3).double()).tolist() == [0.0, 0.0, 0.0]
