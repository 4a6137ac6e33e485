"""Lengths of pruned axes: ratios by block, kind and name, budgets, and the ranking of scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.recipe.stages import Budget, DepGraph, PruningRatios
from vitslim.stages.prune.depgraph.ranking import pattern_of, ranked_schedule
from vitslim.stages.prune.depgraph.schedule import choose_cuts
from vitslim.stages.prune.depgraph.stage import DepGraphStage
from vitslim.stages.prune.depgraph.targets import Target


@pytest.fixture(scope="module")
def tiny(tiny_session_graph: ModelGraph) -> ModelSketch:
    """Two blocks: embed 64, and 2 heads of 32 dims and 256 hidden units each."""
    return sketch(tiny_session_graph)


def keep(sketch: ModelSketch, **keys: Any) -> dict[str, int]:
    cuts = choose_cuts(sketch, DepGraph(method="depgraph", **{"round_to": 1, **keys}))
    assert cuts.problems == ()
    return cuts.keep


def test_a_ratio_for_each_block(tiny: ModelSketch) -> None:
    """The embedding runs through all blocks and takes the mean."""
    found = keep(tiny, pruning_ratio=(0.25, 0.75))
    assert (found["blocks.0.mlp"], found["blocks.1.mlp"], found["embed"]) == (192, 64, 32)
    assert (found["blocks.0.qk"], found["blocks.1.v"]) == (24, 8)
    assert keep(tiny, pruning_ratio=(0.0, 0.5)).keys() == {"blocks.1.qk", "blocks.1.v", "blocks.1.mlp", "embed"}


def test_ratios_by_kind(tiny: ModelSketch) -> None:
    found = keep(tiny, pruning_ratio=0.5, pruning_ratios=PruningRatios(head_dim=0.25, mlp=0.75, embed=0.0))
    assert set(found.values()) == {24, 64}
    assert (found["blocks.0.qk"], found["blocks.0.mlp"]) == (24, 64)
    assert "embed" not in found


def test_heads_are_removed_whole_and_their_dims_are_kept(tiny: ModelSketch) -> None:
    cuts = choose_cuts(tiny, DepGraph(method="depgraph", pruning_ratios=PruningRatios(heads=0.5)))
    assert cuts.keep["blocks.0.heads"] == 1
    assert "blocks.0.qk" not in cuts.keep
    assert {note.layer: note.reason for note in cuts.skipped}["blocks.1.v"].startswith("multiplies with blocks.1.heads")


def test_heads_and_dims_are_both_cut_when_both_are_named(tiny: ModelSketch) -> None:
    found = keep(tiny, pruning_ratios=PruningRatios(heads=0.5, head_dim=0.25))
    assert (found["blocks.0.heads"], found["blocks.0.qk"], found["blocks.0.v"]) == (1, 24, 24)
    rounded = keep(tiny, pruning_ratios=PruningRatios(heads=0.5, head_dim=0.25), round_to=16)
    assert (rounded["blocks.0.heads"], rounded["blocks.0.qk"]) == (1, 16)


def test_single_axes(tiny: ModelSketch) -> None:
    found = keep(tiny, axes={"blocks.0.mlp": 0.75, "blocks.1.mlp": 0.0})
    assert found["blocks.0.mlp"] == 64
    assert "blocks.1.mlp" not in found
    assert found["blocks.0.v"] == 16
    assert keep(tiny, pruning_ratio=0.0, axes={"embed": 0.5}, mode="bottleneck") == {"embed": 32}


def test_a_named_axis_is_cut_before_one_that_is_not(tiny: ModelSketch) -> None:
    found = keep(tiny, axes={"blocks.0.heads": 0.5})
    assert found["blocks.0.heads"] == 1
    assert not {"blocks.0.qk", "blocks.0.v"} & found.keys()
    assert "blocks.1.qk" in found


def test_no_axis_loses_more_than_max_ratio(tiny: ModelSketch) -> None:
    assert set(keep(tiny, pruning_ratio=0.9, max_pruning_ratio=0.5).values()) == {16, 32, 128}
    assert keep(tiny, pruning_ratio=0.9, max_pruning_ratio=0.45, round_to=16) == {
        "blocks.0.mlp": 144, "blocks.1.mlp": 144, "embed": 48,
        "blocks.0.qk": 24, "blocks.0.v": 24, "blocks.1.qk": 24, "blocks.1.v": 24,
    }  # fmt: skip


@pytest.mark.parametrize("key", ["macs", "params"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.95])
@pytest.mark.parametrize(
    "keys", [{}, {"pruning_ratio": 0.0}, {"pruning_ratio": (0.2, 0.6)}, {"pruning_ratios": PruningRatios(mlp=0.9)}]
)
def test_a_budget_is_met(tiny: ModelSketch, key: str, share: float, keys: dict[str, Any]) -> None:
    cost = tiny.with_sizes(keep(tiny, budget=Budget(**{key: share}), **keys)).cost()
    reached = getattr(cost, key) / getattr(tiny.cost(), key)
    assert share - 0.01 <= reached <= share


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_budget_in_steps_of_16_leaves_less_than_one_step(tiny: ModelSketch, share: float) -> None:
    found = keep(tiny, budget=Budget(macs=share), round_to=16)
    limit = share * tiny.cost().macs
    assert tiny.with_sizes(found).cost().macs <= limit
    looser = keep(tiny, budget=Budget(macs=min(1.0, share + 0.12)), round_to=16)
    assert tiny.with_sizes(looser).cost().macs > tiny.with_sizes(found).cost().macs
    assert all(count % 8 == 0 for count in found.values())


def test_a_budget_scales_ratios_alike(tiny: ModelSketch) -> None:
    found = keep(tiny, budget=Budget(macs=0.8), pruning_ratio=0.0, pruning_ratios=PruningRatios(mlp=0.2, head_dim=0.1))
    lost_mlp, lost_dims = 1 - found["blocks.0.mlp"] / 256, 1 - found["blocks.0.qk"] / 32
    assert lost_mlp == pytest.approx(2 * lost_dims, abs=0.07)
    assert "embed" not in found


class Cycles:
    """A latency that jumps at multiples of 16 columns, as a measured table does."""

    fixed_ms = 0.0

    def matmul_ms(self, shape: tuple[int, int, int, int], is_attention: bool) -> float:
        count, rows, reduce, columns = shape
        return count * rows * reduce * -(-columns // 16) / 1e6

    def operator_ms(self, kind: str, elements: int) -> float:
        return 0.0


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_latency_budget(tiny: ModelSketch, scope: str) -> None:
    config = DepGraph(method="depgraph", round_to=1, scope=scope, budget=Budget(latency=0.6, table="t.json"))  # type: ignore[arg-type]
    table: Any = Cycles()
    estimate = DepGraphStage(config, table).estimate(tiny)

    def latency(model: ModelSketch) -> float:
        return float(sum(table.matmul_ms(p.shape(model.axes), not p.weight) for p in model.matmuls))

    reached = latency(estimate) / latency(tiny)
    assert 0.57 <= reached <= 0.6


def test_a_latency_budget_without_a_table_is_a_problem(tiny: ModelSketch) -> None:
    config = DepGraph(method="depgraph", budget=Budget(latency=0.5, table="t.json"))
    (problem,) = DepGraphStage(config).requires(tiny)
    assert problem.where == "budget.table"


def target(axis: str, size: int = 4, ratio: float = 0.5, step: int = 1, least: int = 1) -> Target:
    return Target(axis, size, ratio, step, least)


def ranked(targets: list[Target], factor: float, lists: dict[str, str] | None = None, **scores: list[float]) -> Any:
    tensors = {name: torch.tensor(values).double() for name, values in scores.items()}
    return ranked_schedule(targets, tensors, lists or dict.fromkeys("abc", ""))(factor)


def test_the_lowest_scores_of_all_axes_are_removed() -> None:
    targets = [target("a"), target("b")]
    assert ranked(targets, 1.0, a=[1, 2, 3, 9], b=[8, 7, 4, 6]) == {"a": 1, "b": 3}
    assert ranked(targets, 0.5, a=[1, 2, 3, 9], b=[8, 7, 4, 6]) == {"a": 2, "b": 4}
    assert ranked(targets, 0.0, a=[1, 2, 3, 9], b=[8, 7, 4, 6]) == {"a": 4, "b": 4}


def test_an_axis_at_its_limit_passes_removals_to_the_others() -> None:
    targets = [target("a", least=3), target("b")]
    assert ranked(targets, 1.0, a=[1, 2, 3, 4], b=[5, 6, 7, 8]) == {"a": 3, "b": 1}
    assert ranked(targets, 2.0, a=[1, 2, 3, 4], b=[5, 6, 7, 8]) == {"a": 3, "b": 1}


def test_lists_and_ratios_are_ranked_apart() -> None:
    scores = {"a": [1.0, 1, 1, 1], "b": [9.0, 8, 7, 6], "c": [3.0, 2, 3, 3]}
    # Four of b and c are removed; c keeps its last index, so one of them is of b.
    lists = {"a": "x", "b": "y", "c": "y"}
    assert ranked([target(n) for n in "abc"], 1.0, lists, **scores) == {"a": 2, "b": 3, "c": 1}
    apart = [target("a"), target("b", ratio=0.25)]
    assert ranked(apart, 1.0, a=[1, 1, 1, 1], b=[0, 0, 0, 0]) == {"a": 2, "b": 3}


def test_ranked_lengths_are_rounded_down_and_others_do_not_change() -> None:
    targets = [target("a", size=6, step=4, least=4), target("b", size=6, step=4, least=4)]
    assert ranked(targets, 1 / 6, a=[1, 5, 5, 5, 5, 5], b=[9.0] * 6) == {"a": 4, "b": 6}


def test_later_steps_count_from_the_original_size() -> None:
    assert ranked([target("a", size=8), target("b", size=8)], 1.0, a=[1, 2, 3, 4], b=[1.5, 5, 6, 7, 8]) == {
        "a": 3, "b": 5
    }  # fmt: skip


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=8), min_size=1, max_size=3),
    st.floats(0, 2),
    st.floats(0, 2),
)
@settings(deadline=None)
def test_ranked_lengths_never_grow_with_the_factor(scores: list[list[float]], one: float, other: float) -> None:
    named = dict(zip("abc", scores, strict=False))
    targets = [target(name, size=len(values)) for name, values in named.items()]
    less, more = (ranked(targets, factor, **named) for factor in sorted((one, other), reverse=True))
    assert all(1 <= less[name] <= more[name] <= len(named[name]) for name in named)


def test_patterns_are_equal_across_blocks(tiny_session_graph: ModelGraph) -> None:
    axes = tiny_session_graph.axes
    for kind in ("heads", "qk", "v", "mlp"):
        assert pattern_of(axes[f"blocks.0.{kind}"]) == pattern_of(axes[f"blocks.1.{kind}"])
    kinds = ["embed", *(f"blocks.0.{kind}" for kind in ("heads", "qk", "v", "mlp"))]
    assert len({pattern_of(axes[name]) for name in kinds}) == 5
