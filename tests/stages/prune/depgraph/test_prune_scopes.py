"""Structural pruning of a traced ViT: scopes, heads, steps, budgets, importances and group sparsity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.edits import Slice
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import sketch
from vitslim.recipe.stages import Budget, DepGraph, GroupSparsity, PruningRatios
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.depgraph.group_sparsity import train_sparse
from vitslim.stages.prune.depgraph.groups import find_members
from vitslim.stages.prune.depgraph.stage import DepGraphStage

Prune = Callable[..., StageResult]


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph, calibration=16)


@pytest.fixture
def prune(tiny_graph: ModelGraph, context: StageContext) -> Prune:
    """Prune the two-block ViT; checks the postconditions of the stage, and that the result runs."""

    def run(seed: int = 0, **keys: Any) -> StageResult:
        stage = DepGraphStage(DepGraph(method="depgraph", **{"round_to": 1, **keys}))
        result = stage.apply(tiny_graph, replace(context, seed=seed))
        assert stage.ensures(tiny_graph, result.graph) == []
        with torch.no_grad():
            assert result.graph.module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        return result

    return run


def kept(result: StageResult) -> dict[str, tuple[int, ...]]:
    edit = result.graph.edits[-1]
    assert isinstance(edit, Slice)
    return dict(edit.kept)


def sizes(result: StageResult) -> dict[str, int]:
    return {axis.name: axis.size for axis in result.graph.axes.axes if not axis.frozen}


def weaken(graph: ModelGraph, block: int, share: float = 0.5) -> None:
    """Make a part of the hidden units of one block weak, from the first on."""
    weights, units = graph.parameters(), round(256 * share)
    with torch.no_grad():
        weights[f"blocks.{block}.mlp.fc1.weight"][:units] *= 0.01
        weights[f"blocks.{block}.mlp.fc2.weight"][:, :units] *= 0.01


def test_global_scope_removes_the_lowest_scores(tiny_graph: ModelGraph, prune: Prune) -> None:
    weaken(tiny_graph, 1)
    found = kept(prune(pruning_ratio=0.2, scope="global"))
    # A fifth of 64 + 2 * (32 + 32 + 256) indices is removed, the 128 weak ones first.
    assert found["blocks.1.mlp"] == tuple(range(128, 256))
    assert len(found.get("blocks.0.mlp", range(256))) > 230


def test_isomorphic_scope_ranks_axes_of_one_pattern_together(tiny_graph: ModelGraph, prune: Prune) -> None:
    weaken(tiny_graph, 1)
    after = sizes(prune(pruning_ratio=0.25, scope="isomorphic"))
    assert (after["blocks.0.mlp"], after["blocks.1.mlp"]) == (256, 128)
    assert after["blocks.0.qk"] + after["blocks.1.qk"] == 48
    assert after["embed"] == 48


def test_max_ratio_holds_in_a_ranking(tiny_graph: ModelGraph, prune: Prune) -> None:
    weaken(tiny_graph, 1, share=0.9)
    after = sizes(prune(pruning_ratio=0.5, scope="global", max_pruning_ratio=0.75))
    assert after["blocks.1.mlp"] == 64


@pytest.mark.parametrize(("scope", "steps"), [("global", 1), ("isomorphic", 2)])
def test_a_budget_is_met_by_ranked_lengths(tiny_graph: ModelGraph, prune: Prune, scope: str, steps: int) -> None:
    weaken(tiny_graph, 0)
    result = prune(scope=scope, steps=steps, budget=Budget(macs=0.6))
    reached = sketch(result.graph).cost().macs / sketch(tiny_graph).cost().macs
    assert 0.58 <= reached <= 0.6
    assert result.metrics["budget_share"] == pytest.approx(reached)


def test_a_local_budget_in_steps_ends_where_the_plan_says(tiny_graph: ModelGraph, prune: Prune) -> None:
    config = DepGraph(method="depgraph", budget=Budget(params=0.7), round_to=1)
    result = prune(budget=Budget(params=0.7), steps=3)
    assert sketch(result.graph).cost() == DepGraphStage(config).estimate(sketch(tiny_graph)).cost()


def test_steps_are_parts_of_the_original_size(prune: Prune) -> None:
    result = prune(pruning_ratio=0.75, steps=3)
    lengths = [len(edit.kept["blocks.0.mlp"]) for edit in result.graph.edits if isinstance(edit, Slice)]
    assert lengths == [192, 128, 64]
    assert {note.layer: note.result for note in result.changes}["blocks.0.mlp"] == "kept 64 of 256"


def test_scores_are_computed_again_before_each_step(tiny_graph: ModelGraph, prune: Prune) -> None:
    """Dims of `embed` whose weight lies in hidden units that are removed first lose their rank with them."""
    weaken(tiny_graph, 0)
    with torch.no_grad():
        tiny_graph.parameters()["blocks.0.mlp.fc1.weight"][:128, :32] += 0.03
    once, twice = prune(pruning_ratio=0.5), prune(pruning_ratio=0.5, steps=4)
    origins = torch.arange(64)
    for edit in twice.graph.edits:
        assert isinstance(edit, Slice)
        origins = origins[list(edit.kept["embed"])]
    assert sizes(once) == sizes(twice)
    assert tuple(origins.tolist()) != kept(once)["embed"]


def test_the_weakest_head_is_removed_whole(tiny_graph: ModelGraph, prune: Prune) -> None:
    with torch.no_grad():
        tiny_graph.parameters()["blocks.0.attn.qkv.weight"].view(3, 2, 32, 64)[:, 0] *= 0.1
        tiny_graph.parameters()["blocks.1.attn.proj.weight"].view(64, 2, 32)[:, 1] *= 0.1
    before = tiny_graph.parameters()
    result = prune(pruning_ratio=0.0, pruning_ratios=PruningRatios(heads=0.5))
    assert kept(result) == {"blocks.0.heads": (1,), "blocks.1.heads": (0,)}
    after = result.graph.parameters()
    qkv = before["blocks.0.attn.qkv.weight"].view(3, 2, 32, 64)[:, 1].reshape(96, 64)
    assert torch.equal(after["blocks.0.attn.qkv.weight"], qkv)
    assert torch.equal(after["blocks.1.attn.proj.weight"], before["blocks.1.attn.proj.weight"][:, :32])


@pytest.mark.parametrize("scope", ["local", "global"])
def test_heads_and_dims_in_steps_down_to_one_head(prune: Prune, scope: str, tmp_path: Path) -> None:
    """An axis of one index is no longer an axis: the next step runs without it. The result can be saved."""
    result = prune(pruning_ratios=PruningRatios(heads=0.5, head_dim=0.5), steps=2, scope=scope, pruning_ratio=0.25)
    assert not [name for name in sizes(result) if name.endswith("heads")] or scope == "global"
    save_graph(result.graph, tmp_path)
    loaded = load_graph(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.module(images), result.graph.module(images))


def test_random_scores_depend_on_the_seed_alone(prune: Prune) -> None:
    assert kept(prune(importance="random", seed=1)) == kept(prune(importance="random", seed=1))
    assert kept(prune(importance="random", seed=1)) != kept(prune(importance="random", seed=2))


def test_hessian_is_not_taylor(tiny_graph: ModelGraph, prune: Prune) -> None:
    """One image: `w^2 g^2` and `|w g|` rank single elements alike, but their sums over slices do not."""
    found = prune(importance="hessian", batches=1, batch=8)
    assert found.metrics["calibration_images"] == 8
    assert kept(found) != kept(prune(importance="taylor", batches=1, batch=8))
    assert all(weight.grad is None for weight in tiny_graph.parameters().values())


BASE = {"pruning_ratio": 0.3}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (BASE, {"importance": "magnitude_l1"}),
        (BASE, {"importance": "random"}),
        (BASE, {"scope": "global"}),
        (BASE, {"scope": "isomorphic"}),
        (BASE, {"steps": 3}),
        (BASE, {"max_pruning_ratio": 0.2}),
        (BASE, {"pruning_ratios": {"mlp": 0.1}}),
        (BASE, {"axes": {"blocks.0.v": 0.0}}),
        (BASE, {"budget": {"macs": 0.8}}),
        ({"scope": "global", **BASE}, {"importance": "lamp"}),
    ],
)
def test_each_key_changes_the_result(prune: Prune, base: dict[str, Any], change: dict[str, Any]) -> None:
    assert kept(prune(**base)) != kept(prune(**{**base, **change}))


def test_a_budget_out_of_reach_is_refused(prune: Prune) -> None:
    with pytest.raises(StageError, match=r"0\.01 of the MACs cannot be reached"):
        prune(budget=Budget(macs=0.01), scope="global")


def test_violated_postconditions_are_found(tiny_graph: ModelGraph, prune: Prune) -> None:
    half = prune(pruning_ratio=0.5).graph

    def problems(**keys: Any) -> dict[str, str]:
        stage = DepGraphStage(DepGraph(method="depgraph", round_to=1, **keys))
        return {problem.where: problem.message for problem in stage.ensures(tiny_graph, half)}

    assert problems(pruning_ratio=0.25)["embed"] == "has 32 indices, expected 48"
    assert problems(scope="global", max_pruning_ratio=0.25)["embed"] == "has 32 indices, expected at least 48"
    assert problems(scope="global") == {}
    assert "budget.macs" in problems(scope="global", budget=Budget(macs=0.2))
    assert DepGraphStage(DepGraph(method="depgraph")).ensures(tiny_graph, tiny_graph)[0].message == "no axis was cut"


def test_sparsity_training_widens_the_gap(tiny_graph: ModelGraph, context: StageContext) -> None:
    """Strong regularization shrinks weak hidden units more, relative to strong ones, than weak regularization."""
    members = find_members([tiny_graph.axes["blocks.0.mlp"]], tiny_graph.parameters())
    train = Train(epochs=2, batch=16, lr=2e-3, images=160)

    def gap(gamma: float) -> float:
        student, metrics = train_sparse(tiny_graph, members, GroupSparsity(gamma=gamma, train=train), context)
        assert metrics["sparsity_steps"] == 20
        norms = student.parameters()["blocks.0.mlp.fc2.weight"].detach().norm(dim=0).sort().values
        return float(norms[:64].mean() / norms[-64:].mean())

    assert gap(1.0) < 0.8 * gap(1e-9)


def test_sparsity_training_comes_before_the_cut(tiny_graph: ModelGraph, prune: Prune) -> None:
    before = {name: weight.clone() for name, weight in tiny_graph.parameters().items()}
    sparsity = GroupSparsity(gamma=1.0, train=Train(epochs=1, batch=16, lr=1e-2, images=160))
    result = prune(pruning_ratio=0.5, group_sparsity=sparsity)
    assert result.metrics["sparsity_images"] == 160
    assert result.metrics["seconds"] > 0
    assert kept(result) != kept(prune(pruning_ratio=0.5))
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_graph.parameters().items())


def test_sparsity_training_accepts_every_training_key(tiny_graph: ModelGraph, prune: Prune) -> None:
    """Training keys change the sparse weights, and thereby the choice of kept indices, but never the source graph."""
    before = {name: weight.clone() for name, weight in tiny_graph.parameters().items()}
    train = Train(epochs=1, batch=16, lr=1e-2, images=160, mixup=0.8, cutmix=1.0, drop_path=0.2, ema=0.5, min_lr=1e-3)
    result = prune(pruning_ratio=0.5, group_sparsity=GroupSparsity(gamma=1.0, train=train))
    assert result.metrics["sparsity_images"] == 160
    assert not [node for node in result.graph.module.graph.nodes if "drop_path" in str(node.target)]
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_graph.parameters().items())
