"""Structural pruning of traced ViTs: the cut axes, the unchanged weights, and the effect of every key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.axes import RULES, infer_axes
from vitslim.graph.axes.scope import Scope
from vitslim.graph.edits import Slice
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import attention_cuts, sketch
from vitslim.progress import Silent
from vitslim.recipe.stages import DepGraph, TwoFour
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.depgraph.stage import DepGraphStage
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.training.loop import train

Prune = Callable[..., StageResult]
DigitsContext = Callable[..., StageContext]


@pytest.fixture
def prune(tiny_graph: ModelGraph, digits_context: DigitsContext) -> Prune:
    """Prune the two-block ViT; checks the postconditions of the stage."""

    def run(graph: ModelGraph | None = None, seed: int = 0, **keys: Any) -> StageResult:
        before = graph or tiny_graph
        stage = DepGraphStage(DepGraph(method="depgraph", **keys))
        result = stage.apply(before, digits_context(before, 64, seed))
        assert stage.ensures(before, result.graph) == []
        return result

    return run


def kept(result: StageResult) -> dict[str, tuple[int, ...]]:
    edit = result.graph.edits[-1]
    assert isinstance(edit, Slice)
    return {name: tuple(indices) for name, indices in edit.kept.items()}


def images(graph: ModelGraph, count: int = 3) -> torch.Tensor:
    return torch.randn(count, *graph.source.image, generator=torch.Generator().manual_seed(7))


def test_uniform_halves_every_axis_but_heads(tiny_graph: ModelGraph, prune: Prune) -> None:
    result = prune(pruning_ratio=0.5)
    sizes = {axis.name: axis.size for axis in result.graph.axes.axes}
    for block in ("blocks.0", "blocks.1"):
        assert [sizes[f"{block}.{kind}"] for kind in ("heads", "qk", "v", "mlp")] == [2, 16, 16, 128]
    assert sizes["embed"] == 32
    assert {note.layer: note.result for note in result.changes}["blocks.1.mlp"] == "kept 128 of 256"
    assert result.skipped == ()
    assert result.metrics["verify_error"] < 1e-4
    with torch.no_grad():
        assert result.graph.module(images(tiny_graph)).shape == (3, 10)


def test_the_input_graph_does_not_change(tiny_graph: ModelGraph, prune: Prune) -> None:
    before = {name: weight.clone() for name, weight in tiny_graph.module.state_dict().items()}
    prune(importance="taylor", batches=1)
    after = tiny_graph.module.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert tiny_graph.edits == ()
    assert all(weight.grad is None for weight in tiny_graph.parameters().values())


@pytest.mark.parametrize("mode", ["uniform", "bottleneck"])
def test_the_estimate_equals_the_result(tiny_graph: ModelGraph, prune: Prune, mode: str) -> None:
    stage = DepGraphStage(DepGraph(method="depgraph", pruning_ratio=0.3, mode=mode))  # type: ignore[arg-type]
    assert stage.estimate(sketch(tiny_graph)).cost() == sketch(prune(pruning_ratio=0.3, mode=mode).graph).cost()


def test_an_index_is_removed_from_every_member(tiny_graph: ModelGraph, prune: Prune) -> None:
    result = prune(pruning_ratio=0.4, round_to=1)
    survivors = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in tiny_graph.parameters().items()}
    for name, indices in kept(result).items():
        for site in tiny_graph.axes[name].sites:
            kept_here = torch.from_numpy(np.isin(site.index, indices) | (site.index < 0))
            shape = [-1 if dim == site.dim else 1 for dim in range(survivors[site.parameter].ndim)]
            survivors[site.parameter] &= kept_here.view(shape)
    after = result.graph.parameters()
    assert after.keys() == survivors.keys()
    for name, weight in tiny_graph.parameters().items():
        assert torch.equal(weight[survivors[name]], after[name].flatten()), name


def test_pruning_equals_zeroing_where_no_norm_runs(tiny_graph: ModelGraph, prune: Prune) -> None:
    result = prune(pruning_ratio=0.4, mode="bottleneck", round_to=1)
    zeroed = tiny_graph.copy()
    weights = zeroed.parameters()
    with torch.no_grad():
        for name, indices in kept(result).items():
            for site in tiny_graph.axes[name].sites:
                gone = np.flatnonzero(~np.isin(site.index, indices) & (site.index >= 0))
                weights[site.parameter].index_fill_(site.dim, torch.from_numpy(gone), 0.0)
        difference = zeroed.module(images(tiny_graph)) - result.graph.module(images(tiny_graph))
        moved = zeroed.module(images(tiny_graph)) - tiny_graph.module(images(tiny_graph))
    assert difference.abs().max() < 1e-5
    assert moved.abs().max() > 1e-3


def test_round_to_16_leaves_every_layer_to_two_four(prune: Prune, digits_context: DigitsContext) -> None:
    pruned = prune(pruning_ratio=0.3).graph
    result = TwoFourStage(TwoFour(method="two-four")).apply(pruned, digits_context(pruned, 64))
    assert result.skipped == ()
    assert len(result.changes) == 9


def test_pruning_twice(prune: Prune) -> None:
    result = prune(prune(pruning_ratio=0.5, round_to=4).graph, pruning_ratio=0.5, round_to=4)
    assert result.graph.axes["embed"].size == 16
    assert len(result.graph.edits) == 2


def test_biases_and_tokens_do_not_contribute_to_scores(tiny_graph: ModelGraph, prune: Prune) -> None:
    expected = kept(prune(tiny_graph.copy()))
    with torch.no_grad():
        for name, weight in tiny_graph.parameters().items():
            if not name.endswith(".weight"):
                weight.copy_(torch.randn(weight.shape) * 1e3)
    assert kept(prune()) == expected


def test_norms_contribute_to_scores(tiny_graph: ModelGraph, prune: Prune) -> None:
    gone = sorted(set(range(64)) - set(kept(prune(tiny_graph.copy()))["embed"]))
    with torch.no_grad():
        tiny_graph.parameters()["blocks.1.norm2.weight"][gone[:3]] = 100.0
    assert set(gone[:3]) <= set(kept(prune())["embed"])


def test_a_head_dim_is_scored_by_its_sum_over_heads(tiny_graph: ModelGraph, prune: Prune) -> None:
    """Every head keeps the same dims: those whose rows of q and k are largest over all heads together."""
    with torch.no_grad():
        rows = tiny_graph.parameters()["blocks.0.attn.qkv.weight"].view(3, 2, 32, 64)
        rows[:2] = 1e-3
        rows[0, 0, 20:28] = 3.0
        rows[1, 1, 2:10] = 2.0
    assert kept(prune())["blocks.0.qk"] == (*range(2, 10), *range(20, 28))


def test_pruning_after_squeezing_matches_the_plan(tiny_graph: ModelGraph, prune: Prune) -> None:
    stage = DepGraphStage(DepGraph(method="depgraph"))
    dense = sketch(tiny_graph)
    planned = stage.estimate(dense.with_squeeze(attention_cuts(dense, {"blocks.0": 8})))
    result = prune(insert_squeeze(tiny_graph, {"blocks.0": 8}))
    assert sketch(result.graph).cost() == planned.cost()
    with torch.no_grad():
        assert result.graph.module(images(tiny_graph)).shape == (3, 10)


TAYLOR = {"importance": "taylor", "batches": 2, "batch": 8, "pruning_ratio": 0.5}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"pruning_ratio": 0.25}),
        ({}, {"mode": "bottleneck"}),
        ({}, {"importance": "taylor"}),
        ({"pruning_ratio": 0.4}, {"round_to": 1}),
        (TAYLOR, {"batches": 4}),
        (TAYLOR, {"batch": 16}),
    ],
)
def test_each_key_changes_the_result(prune: Prune, base: dict[str, Any], change: dict[str, Any]) -> None:
    assert kept(prune(**base)) != kept(prune(**{**base, **change}))


def test_equal_seeds_give_equal_graphs(prune: Prune) -> None:
    one, two = prune(seed=3, **TAYLOR), prune(seed=3, **TAYLOR)
    assert kept(one) == kept(two)
    assert one.metrics == two.metrics
    assert one.metrics["calibration_images"] == 16
    assert kept(prune(seed=4, **TAYLOR)) != kept(one)


def test_taylor_uses_all_images_when_there_are_few(prune: Prune) -> None:
    assert prune(importance="taylor", batches=100, batch=32).metrics["calibration_images"] == 64


def trained_with_dead_units(graph: ModelGraph, data: StageContext) -> ModelGraph:
    """A trained model in which every other hidden unit of block 0 never fires but has large outgoing weights."""

    def objective(logits: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": torch.nn.functional.cross_entropy(logits, batch.labels)}

    student = graph.copy()
    train(student.module, data.data.calibration, objective, Train(epochs=4, lr=1e-3), 0, {}, Silent())
    weights = student.parameters()
    with torch.no_grad():
        weights["blocks.0.mlp.fc1.weight"][::2] = 0.0
        weights["blocks.0.mlp.fc1.bias"][::2] = -30.0
        weights["blocks.0.mlp.fc2.weight"][:, ::2] = 10.0
    return student


def test_taylor_keeps_the_units_that_affect_the_loss(
    tiny_graph: ModelGraph, prune: Prune, digits_context: DigitsContext
) -> None:
    model = trained_with_dead_units(tiny_graph, digits_context(tiny_graph, 64))
    by_size = kept(prune(model, importance="magnitude_l2"))["blocks.0.mlp"]
    by_effect = kept(prune(model, importance="taylor"))["blocks.0.mlp"]
    assert by_size == tuple(range(0, 256, 2))
    assert by_effect == tuple(range(1, 256, 2))


def test_taylor_without_images_is_refused(tiny_graph: ModelGraph, digits_context: DigitsContext) -> None:
    given = digits_context(tiny_graph, 64)
    empty = replace(given, data=replace(given.data, calibration=given.data.calibration.subset([])))
    with pytest.raises(StageError, match="needs calibration images") as error:
        DepGraphStage(DepGraph(method="depgraph", importance="taylor")).apply(tiny_graph, empty)
    assert "data.calibration" in error.value.hint


def test_weights_that_are_not_finite_are_refused(tiny_graph: ModelGraph, prune: Prune) -> None:
    with torch.no_grad():
        tiny_graph.parameters()["blocks.1.mlp.fc2.weight"][0, 0] = torch.nan
    with pytest.raises(StageError, match="not finite"):
        prune()


def test_nothing_to_prune_is_refused(prune: Prune) -> None:
    with pytest.raises(StageError, match=r"nothing can be pruned: .*steps of") as error:
        prune(round_to=512)
    assert error.value.exit_code == 3
    with pytest.raises(StageError, match="removes none"):
        prune(pruning_ratio=0.0, round_to=1)


def test_pruning_a_masked_model_is_refused(tiny_graph: ModelGraph, prune: Prune, digits_context: DigitsContext) -> None:
    masked = TwoFourStage(TwoFour(method="two-four")).apply(tiny_graph, digits_context(tiny_graph, 64)).graph
    with pytest.raises(StageError, match="sparsity pattern"):
        prune(masked)


def test_a_wrong_axis_is_caught_before_the_cut(tiny_graph: ModelGraph, prune: Prune) -> None:
    """A rule that forgets to tie the input of GELU to its output must not lead to a cut."""

    def forgetful(scope: Scope, node: torch.fx.Node) -> Any:
        return scope.fresh(scope.shape(node), reason="")

    rules = {**RULES, torch.ops.aten.gelu.default: forgetful}
    tiny_graph.__dict__["axes"] = infer_axes(tiny_graph.module, tiny_graph.source.image, rules)
    with pytest.raises(StageError, match="not inferred correctly"):
        prune()
