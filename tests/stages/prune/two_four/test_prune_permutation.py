"""Orders of channels for N:M masks: mathematics and stage."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.progress import Silent
from vitslim.recipe.stages import TwoFour
from vitslim.sparsity import Pattern
from vitslim.stages.contract import StageContext
from vitslim.stages.prune.two_four.patterns import pattern_mask
from vitslim.stages.prune.two_four.permutation import efficacy, find_permutation, kept_magnitude
from vitslim.stages.prune.two_four.reorder import permute_channels
from vitslim.stages.prune.two_four.stage import TwoFourStage


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


PATTERNS = [Pattern(2, 4), Pattern(2, 4, 2), Pattern(1, 4), Pattern(4, 8)]


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 5), st.sampled_from(PATTERNS))
@settings(deadline=None, max_examples=40)
def test_an_order_is_a_permutation_that_never_keeps_less(seed: int, runs: int, rows: int, pattern: Pattern) -> None:
    weight = drawn(rows, pattern.span * runs, seed)
    order = find_permutation(weight, pattern)
    assert sorted(order.tolist()) == list(range(pattern.span * runs))
    size = weight.abs().T.double()
    assert kept_magnitude(size[order], pattern).sum() >= kept_magnitude(size, pattern).sum() - 1e-5
    assert -1e-9 <= efficacy(weight, order, pattern) <= 1 + 1e-9


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_swap_of_columns_of_two_groups_gains_magnitude(pattern: Pattern) -> None:
    weight = drawn(6, 4 * pattern.span)
    size = weight.abs().T[find_permutation(weight, pattern)].double()
    best = kept_magnitude(size, pattern).sum()
    for i, j in permutations(range(len(size)), 2):
        swapped = torch.arange(len(size))
        swapped[i], swapped[j] = j, i
        if i // pattern.span != j // pattern.span:
            assert kept_magnitude(size[swapped], pattern).sum() <= best + 1e-5


def test_the_kept_magnitude_is_that_of_the_mask() -> None:
    weight = drawn(6, 16)
    for pattern in PATTERNS[:3]:
        mask = pattern_mask(weight.abs(), pattern)
        torch.testing.assert_close(kept_magnitude(weight.abs().T, pattern).sum(), weight.abs()[mask].sum())


def test_pairs_form_of_channels_that_are_large_in_the_same_rows() -> None:
    halves = (drawn(64, 16).abs() > 0.6) * (1 + torch.rand(64, 16, generator=torch.Generator().manual_seed(1)))
    weight = torch.cat([halves, halves], dim=1)  # channel i and channel i + 16 are alike, and far apart
    pairs = find_permutation(weight, PATTERNS[1]).reshape(-1, 2)
    assert (pairs[:, 0] % 16).tolist() == (pairs[:, 1] % 16).tolist()


def test_large_columns_are_spread_over_groups() -> None:
    weight = torch.cat([10 + torch.rand(8, 4), torch.rand(8, 4)], dim=1)  # a group of large, a group of small columns
    order = find_permutation(weight)
    assert [int((order[run : run + 4] < 4).sum()) for run in (0, 4)] == [2, 2]
    assert efficacy(weight, order) > 0.9


def sketch_names(graph: ModelGraph) -> list[str]:
    return [layer.weight for layer in sketch(graph).linears if layer.role != "head"]


def logits(graph: ModelGraph, context: StageContext) -> torch.Tensor:
    with torch.no_grad():
        return graph.module(torch.stack([context.data.val[i][0] for i in range(40)]))


@pytest.mark.parametrize("pattern", ["2:4", "2:4-pairs"])
def test_reordering_changes_no_output_and_keeps_more(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], pattern: str
) -> None:
    context = digits_context(tiny_graph)
    plain, ordered = (
        TwoFourStage(TwoFour(method="two-four", pattern=pattern, permute=permute)).apply(tiny_graph, context)
        for permute in ((), ("mlp", "v", "embed"))
    )
    before = plain.metrics["kept_magnitude"]
    assert ordered.metrics["kept_magnitude_in_old_order"] == pytest.approx(before)
    assert ordered.metrics["kept_magnitude"] > before
    moved = {note.layer for note in ordered.changes if note.result == "channels reordered"}
    assert {"embed", "blocks.0.mlp", "blocks.1.mlp"} <= moved
    names = sketch_names(tiny_graph)
    reordered, _ = permute_channels(tiny_graph, names, ("mlp", "v", "embed"), Pattern(2, 4), Silent())
    torch.testing.assert_close(logits(reordered, context), logits(tiny_graph, context), rtol=0, atol=1e-5)
    slices = [edit for edit in ordered.graph.edits if hasattr(edit, "kept")]
    assert len(slices) == 1 and slices[0].kept.keys() == moved
