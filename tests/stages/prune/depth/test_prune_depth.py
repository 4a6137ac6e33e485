"""Depth pruning of a traced ViT: the least sensitive units are removed, as many as `remove`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from vitslim.data import batches
from vitslim.errors import StageError
from vitslim.graph.edits import FakeQuantSite, RemoveBlocks
from vitslim.graph.edits.fake_quant import insert_fake_quant
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.remove_blocks import remove_blocks
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import SketchBranch, cost, sketch
from vitslim.graph.trace import trace_timm
from vitslim.recipe.stages import Depth, Unstructured
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.depth.stage import DepthStage
from vitslim.stages.prune.depth.units import find_units
from vitslim.stages.prune.unstructured.stage import UnstructuredStage
from vitslim.training.tasks.classification import Classification

Shorten = Callable[..., StageResult]


class Recorder:
    """Progress that records its loops."""

    def __init__(self) -> None:
        self.loops: list[tuple[str, int]] = []

    def track(self, items: Iterable[Any], label: str, total: int | None = None, images: int = 0) -> Iterator[Any]:
        items = list(items)
        self.loops.append((label, len(items)))
        return iter(items)

    def say(self, message: str) -> None:
        pass


@pytest.fixture(scope="module")
def session_graph(tiny_kwargs: dict[str, Any]) -> ModelGraph:
    return trace_timm("vit_tiny_patch16_224", {**tiny_kwargs, "depth": 4})


@pytest.fixture
def graph(session_graph: ModelGraph) -> ModelGraph:
    return session_graph.copy()


@pytest.fixture
def context(graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(graph, progress=Recorder())


@pytest.fixture
def shorten(graph: ModelGraph, context: StageContext) -> Shorten:
    def run(start: ModelGraph = graph, **config: Any) -> StageResult:
        stage = DepthStage(Depth(method="depth", **config))
        result = stage.apply(start, context)
        assert stage.ensures(start, result.graph) == []
        return result

    return run


def silence(graph: ModelGraph, branch: str, factor: float = 1e-3) -> None:
    """Make a branch add almost zero."""
    layer = "proj" if branch.endswith("attn") else "fc2"
    with torch.no_grad():
        for leaf in ("weight", "bias"):
            graph.parameters()[f"{branch}.{layer}.{leaf}"].mul_(factor)


def test_the_divergence_is_that_of_softmax_in_nats() -> None:
    first, second = torch.randn(2, 5, 7)
    expected = (first.softmax(1) * (first.log_softmax(1) - second.log_softmax(1))).sum(1).mean()
    loss = Classification().soft_loss
    assert loss(second, first).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss(first + 3, first).item() == pytest.approx(0, abs=1e-6)


def test_the_least_sensitive_blocks_are_removed_first(graph: ModelGraph, shorten: Shorten) -> None:
    for block, factor in (("blocks.2", 1e-4), ("blocks.0", 1e-2)):
        silence(graph, f"{block}.attn", factor)
        silence(graph, f"{block}.mlp", factor)
    before = {name: weight.clone() for name, weight in graph.parameters().items()}
    result = shorten(remove=2)
    assert result.graph.edits == (RemoveBlocks(("blocks.2", "blocks.0")),)
    assert [note.layer for note in result.changes] == ["blocks.2", "blocks.0"]
    assert "of 4 blocks" in result.changes[0].reason and "of 3 blocks" in result.changes[1].reason
    assert 0 <= result.metrics["mean_kl.blocks.2"] < result.metrics["mean_kl.blocks.0"] == result.metrics["mean_kl"]
    assert all(torch.equal(weight, before[name]) for name, weight in graph.parameters().items())
    assert sketch(result.graph).blocks == ("blocks.1", "blocks.3")


def test_branches_are_removed_one_by_one(graph: ModelGraph, shorten: Shorten) -> None:
    silence(graph, "blocks.1.mlp")
    silence(graph, "blocks.3.attn")
    result = shorten(remove=2, unit="branch")
    assert {note.layer for note in result.changes} == {"blocks.1.mlp", "blocks.3.attn"}
    assert {"blocks.1.attn.qkv.weight", "blocks.3.mlp.fc1.weight"} <= result.graph.parameters().keys()


def test_the_sensitivity_is_measured_against_the_input_model(graph: ModelGraph, shorten: Shorten, context: Any) -> None:
    """By hand: greedy, over the first two batches of the calibration images in the order of the seed."""
    result = shorten(remove=2, batches=2, batch=8)
    images = torch.cat([x for x, _ in list(batches(context.data.calibration, 8, shuffle_seed=0))[:2]])
    assert result.metrics["calibration_images"] == len(images) == 16

    def divergence(names: tuple[str, ...]) -> float:
        with torch.no_grad():
            p, q = (log_softmax(g.module(images).double(), 1) for g in (graph, remove_blocks(graph, names)))
        return float(kl_div(q, p, reduction="batchmean", log_target=True))

    left = [f"blocks.{i}" for i in range(4)]
    gone: tuple[str, ...] = ()
    while len(gone) < 2:
        gone += (min((name for name in left if name not in gone), key=lambda name: divergence((*gone, name))),)
    assert tuple(note.layer for note in result.changes) == gone
    assert result.metrics["mean_kl"] == pytest.approx(divergence(gone), rel=1e-4)


def test_of_equal_sensitivities_the_last_is_removed(graph: ModelGraph, shorten: Shorten) -> None:
    for i in range(4):
        silence(graph, f"blocks.{i}.attn", 0)
        silence(graph, f"blocks.{i}.mlp", 0)
    assert [note.layer for note in shorten(remove=2).changes] == ["blocks.3", "blocks.2"]


def test_progress_counts_every_candidate(shorten: Shorten, context: StageContext) -> None:
    shorten(remove=2)
    assert isinstance(context.progress, Recorder)
    assert context.progress.loops[-2:] == [("sensitivity, 1 of 2", 4), ("sensitivity, 2 of 2", 3)]


def test_the_estimate_is_that_of_the_last_blocks(graph: ModelGraph) -> None:
    stage = DepthStage(Depth(method="depth", remove=2))
    estimate = stage.estimate(sketch(graph))
    assert estimate.cost() == cost(remove_blocks(graph, ["blocks.2", "blocks.3"]))
    assert estimate.blocks == ("blocks.0", "blocks.1")
    fewer = DepthStage(Depth(method="depth", remove=3, unit="branch")).estimate(sketch(graph))
    assert fewer.cost() == cost(remove_blocks(graph, ["blocks.2.mlp", "blocks.3"]))


def test_a_squeezed_block_is_kept_and_listed(graph: ModelGraph, shorten: Shorten) -> None:
    squeezed = insert_squeeze(graph, {"blocks.1": 8})
    silence(squeezed, "blocks.1.attn")
    silence(squeezed, "blocks.1.mlp")
    result = shorten(squeezed, remove=3)
    assert [(n.layer, n.reason) for n in result.skipped] == [
        ("blocks.1", "blocks.1.attn: its result is used elsewhere")
    ]
    assert sketch(result.graph).blocks == ("blocks.1",)


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({"remove": 4}, "the model has 4 blocks: removing 4 would leave none", "at most 3"),
        ({"remove": 9, "unit": "branch"}, "the model has 8 branches: removing 9 would leave none", "at most 7"),
    ],
)
def test_at_least_one_unit_must_be_kept(
    graph: ModelGraph, shorten: Shorten, config: Any, message: str, hint: str
) -> None:
    with pytest.raises(StageError, match=message) as error:
        shorten(**config)
    assert hint in error.value.hint


def test_only_removable_blocks_count(graph: ModelGraph) -> None:
    squeezed = sketch(insert_squeeze(graph, {"blocks.1": 8}))
    (problem,) = DepthStage(Depth(method="depth", remove=4)).requires(squeezed)
    assert (problem.where, problem.message) == ("remove", "only 3 of 4 blocks can be removed, not 4")
    assert DepthStage(Depth(method="depth", remove=3)).requires(squeezed) == []


def test_a_model_without_residuals_is_refused() -> None:
    (problem,) = DepthStage(Depth(method="depth")).requires(sketch(trace_timm("vgg11", {"num_classes": 10})))
    assert "no block that can be removed (no residual branch was found)" in problem.message


def test_masked_and_quantized_models_are_refused(graph: ModelGraph, shorten: Shorten, context: StageContext) -> None:
    with pytest.raises(StageError, match="before quantize"):
        shorten(insert_fake_quant(graph, [FakeQuantSite("head.weight", 8, 8)]))
    sparse = UnstructuredStage(Unstructured(method="unstructured")).apply(graph, context).graph
    with pytest.raises(StageError, match="before a stage that masks"):
        shorten(sparse)


def test_weights_that_are_not_finite_are_refused(graph: ModelGraph, shorten: Shorten) -> None:
    with torch.no_grad():
        graph.parameters()["head.weight"][0, 0] = torch.nan
    with pytest.raises(StageError, match="not finite"):
        shorten()


def test_a_block_is_removable_only_when_all_its_branches_are() -> None:
    free, stuck = SketchBranch("b.0.attn", "b.0", ()), SketchBranch("b.0.mlp", "b.0", (), "is odd")
    whole = SketchBranch("b.1", "b.1", (), "is odd too")
    blocks, single = find_units([free, stuck, whole], "block"), find_units([free, stuck, whole], "branch")
    assert (blocks.removable, blocks.obstacles) == ({}, {"b.0": "b.0.mlp: is odd", "b.1": "is odd too"})
    assert (single.removable, single.obstacles) == (
        {"b.0.attn": ("b.0.attn",)},
        {"b.0.mlp": "is odd", "b.1": "is odd too"},
    )
