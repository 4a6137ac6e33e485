"""The stages of dTPS and DynamicViT: counts, warm start, and the training of predictors by a later distill stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.edits.insert_predictors import find_predictors, insert_predictors, predictor_module
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.graph.training_form import training_form
from vitslim.progress import Silent
from vitslim.recipe.stages import Distill, Dtps, DynamicVit, Qat
from vitslim.recipe.stages.training import Loss
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.quantize.qat.stage import QatStage
from vitslim.stages.token_squeeze.counts import planned_start_counts
from vitslim.stages.token_squeeze.predictors.stage import PredictorStage, form_error
from vitslim.stages.token_squeeze.predictors.warm_start import Observed, fit, observe, rank_agreement
from vitslim.training import checkpoint

MakeContext = Callable[..., StageContext]


def dtps(**keys: Any) -> PredictorStage:
    return PredictorStage(Dtps(method="dtps", **{"blocks": (0, 1), **keys}))


@pytest.fixture
def with_predictors(tiny_graph: ModelGraph) -> ModelGraph:
    return insert_predictors(tiny_graph, {"blocks.0": 11, "blocks.1": 7}, "dtps")


def test_counts_are_fractions_of_the_tokens_at_the_start(tiny_graph: ModelGraph) -> None:
    def counts(keep_rate: float | tuple[float, ...], blocks: tuple[int, ...] = (0, 1)) -> list[tuple[int, int]]:
        found = planned_start_counts(sketch(tiny_graph), blocks, keep_rate, "floor")
        return [(count.before, count.after) for count in found.values()]

    assert counts(0.7) == [(16, 11), (11, 7)]
    assert counts((0.75, 0.5)) == [(16, 12), (12, 8)]
    assert counts((0.5, 0.75), blocks=(1, 0)) == [(16, 12), (12, 8)]
    assert counts(1.0) == [(16, 16), (16, 16)]


def test_apply_reports_its_changes_and_equals_the_estimate(tiny_graph: ModelGraph, digits_context: MakeContext) -> None:
    stage = dtps(keep_rate=0.7)
    dense = sketch(tiny_graph)
    assert stage.requires(dense) == []
    before = {name: weight.detach().clone() for name, weight in tiny_graph.parameters().items()}
    result = stage.apply(tiny_graph, digits_context(tiny_graph))
    notes = [(note.layer, note.result) for note in result.changes]
    assert notes == [("blocks.0", "keeps 11 of 16 patch tokens"), ("blocks.1", "keeps 7 of 11 patch tokens")]
    assert result.metrics["patch_tokens.blocks.1"] == 7
    assert 0 < result.metrics["rank_agreement.blocks.1"] <= 1
    assert sketch(result.graph).cost() == stage.estimate(dense).cost()
    assert stage.ensures(tiny_graph, result.graph) == []
    assert [problem.where for problem in stage.ensures(tiny_graph, tiny_graph)] == ["blocks", "blocks"]
    assert all(torch.equal(result.graph.parameters()[name], weight) for name, weight in before.items())
    assert result.graph.module(torch.randn(3, 3, 32, 32)).shape == (3, 10)


def test_equal_seeds_give_equal_predictors(tiny_graph: ModelGraph, digits_context: MakeContext) -> None:
    graphs = []
    for _ in range(2):
        torch.rand(3)
        graphs.append(dtps(blocks=(1,)).apply(tiny_graph, digits_context(tiny_graph)).graph)
    first, second = (graph.parameters() for graph in graphs)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_keep_one_is_the_identity(tiny_graph: ModelGraph, digits_context: MakeContext) -> None:
    stage = PredictorStage(DynamicVit(method="dynamicvit", blocks=(0, 1), keep_rate=1.0))
    result = stage.apply(tiny_graph, digits_context(tiny_graph))
    assert result.graph.edits == ()
    assert [note.layer for note in result.skipped] == ["blocks.0", "blocks.1"]
    assert stage.ensures(tiny_graph, result.graph) == []
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(result.graph.module(images), tiny_graph.module(images))


def test_the_warm_start_learns_a_ranking_of_tokens(tiny_graph: ModelGraph) -> None:
    """Scores that follow from the features of a token: the predictor ranks new images like them."""
    graph = insert_predictors(tiny_graph, {"blocks.0": 6}, "dtps")
    module = predictor_module(graph.module, find_predictors(graph.module)[0])
    tokens = torch.randn(160, 17, 64, generator=torch.Generator().manual_seed(0))
    observed = Observed(tokens, tokens[:, 1:, :2].sum(dim=2).sigmoid())
    found = fit(module, observed, 6, 0, Silent(), "")
    assert found["rank_agreement"] > 0.8
    assert found["rank_agreement"] > found["untrained_rank_agreement"] + 0.2
    assert graph.module.get_parameter("vitslim.predictor.blocks.0.fc4.bias").abs().max() > 0


def test_scores_are_the_attention_of_the_block_on_the_tokens_at_its_input(
    tiny_graph: ModelGraph, digits_context: MakeContext
) -> None:
    images = digits_context(tiny_graph).data.calibration
    observed = observe(insert_predictors(tiny_graph, {"blocks.0": 9}, "dtps"), "blocks.1", images, Silent())
    assert observed.tokens.shape == (40, 10, 64)
    assert observed.score.shape == (40, 9)
    assert (observed.score.sum(dim=1) < 1).all()
    pooled = trace_timm(
        "vit_tiny_patch16_224", {**tiny_graph.source.kwargs, "class_token": False, "global_pool": "avg"}
    )
    received = observe(pooled, "blocks.1", images, Silent())
    torch.testing.assert_close(received.score.sum(dim=1), torch.ones(40))


def test_rank_agreement_counts_shared_tokens() -> None:
    first, second = torch.tensor([[0.9, 0.8, 0.1, 0.2]]), torch.tensor([[0.9, 0.1, 0.2, 0.8]])
    assert rank_agreement(first, second, 2) == 0.5
    assert rank_agreement(first, first, 3) == 1


@pytest.mark.parametrize(
    ("keys", "where", "words"),
    [
        ({"blocks": (5,)}, "blocks", "block 5 does not exist"),
        ({"keep_rate": 0.2}, "keep_rate", "0 of 3"),
        ({"blocks": (0,), "keep_rate": 0.1}, "keep_rate", "one patch token, expected at least 2"),
    ],
)
def test_recipes_that_do_not_fit(keys: dict[str, Any], where: str, words: str, tiny_graph: ModelGraph) -> None:
    problem = dtps(**keys).requires(sketch(tiny_graph))[0]
    assert problem.where == where
    assert words in problem.message


def distill(**keys: Any) -> DistillStage:
    train = {"epochs": 6, "batch": 32, "lr": 2e-3, "images": 96, **keys.pop("train", {})}
    return DistillStage(Distill(loss=Loss(**{"soft": 0, "ratio": 2, **keys}), train=Train(**train)))


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: MakeContext) -> StageContext:
    return StageContext(
        digits_context(tiny_graph).data, 0, Silent(), {"dense": StageResult(tiny_graph)}.__getitem__, Path()
    )


@pytest.mark.parametrize("bias", [-2.0, 2.0])
def test_the_ratio_loss_moves_decisions_towards_the_keep_rate(
    with_predictors: ModelGraph, context: StageContext, bias: float
) -> None:
    with torch.no_grad():
        for name, weight in with_predictors.parameters().items():
            if name.endswith("fc4.bias") and name.startswith("vitslim."):
                weight[0] += bias
    form = training_form(with_predictors)
    form.module.train()
    torch.manual_seed(0)
    images = torch.randn(32, 3, 32, 32)
    start = [float(d.detach().mean()) for d in form.module(images)[2]]
    stage = distill(ratio=20, train={"epochs": 20})
    result = stage.apply(with_predictors, context)
    assert stage.ensures(with_predictors, result.graph) == []
    for block, before, target in zip(("blocks.0", "blocks.1"), start, (11 / 16, 7 / 16), strict=True):
        after = result.metrics[f"kept_fraction.{block}"]
        assert abs(after - target) < abs(before - target)
        assert abs(after - target) < 0.1
    assert form_error(result.graph) < 1e-3
    changed = {n for n, w in result.graph.parameters().items() if not torch.equal(w, with_predictors.parameters()[n])}
    assert changed == with_predictors.parameters().keys()


def test_tokens_kept_at_the_end_approach_those_of_the_teacher(
    with_predictors: ModelGraph, context: StageContext
) -> None:
    stage = distill(hard=0, ratio=0, token=1, train={"epochs": 12})
    metrics = stage.apply(with_predictors, context).metrics
    assert metrics["loss_last"] < metrics["loss_first"]


def test_predictors_train_with_drop_path_mixing_averages_and_two_teachers(
    with_predictors: ModelGraph, context: StageContext
) -> None:
    keys = {"epochs": 1, "drop_path": 0.2, "mixup": 0.8, "cutmix": 1.0, "ema": 0.9, "backbone_lr": 0.1}
    loss = Loss(hard=1, soft=0.5, token=0.5, ratio=2)
    config = Distill(teacher=("dense", "previous"), loss=loss, train=Train(**keys, images=64))
    earlier = {"dense": context.result("dense"), "previous": StageResult(with_predictors.copy())}
    stage = DistillStage(config)
    result = stage.apply(with_predictors, replace(context, result=earlier.__getitem__))
    assert stage.ensures(with_predictors, result.graph) == []
    assert form_error(result.graph) < 1e-3


@pytest.mark.parametrize("ratio", [0, 2])
def test_an_interrupted_training_ends_with_the_same_weights(
    with_predictors: ModelGraph, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    monkeypatch.setattr(checkpoint, "INTERVAL_S", 0.0)

    class Interrupted(Silent):
        """Stops the training after a number of steps."""

        def track(self, items: Any, label: str, total: int | None = None, images: int = 0) -> Any:
            for number, item in enumerate(items):
                if "distill" in label and number == 7:
                    raise KeyboardInterrupt
                yield item

    stage = distill(ratio=ratio)
    whole = stage.apply(with_predictors, context)
    kept = replace(context, keep=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stage.apply(with_predictors, replace(kept, progress=Interrupted()))
    assert (tmp_path / checkpoint.STATE_FILE).is_file()
    resumed = stage.apply(with_predictors, kept)
    theirs = resumed.graph.parameters()
    assert all(torch.equal(weight, theirs[name]) for name, weight in whole.graph.parameters().items())
    assert resumed.metrics["loss_last"] == whole.metrics["loss_last"]


def test_losses_that_need_predictors_are_refused_without_any(tiny_graph: ModelGraph, context: StageContext) -> None:
    for keys in ({"ratio": 2}, {"ratio": 0, "token": 1}):
        with pytest.raises(StageError, match="needs token predictors"):
            distill(**keys).apply(tiny_graph, context)


def test_quantization_aware_training_trains_the_deployed_form(
    with_predictors: ModelGraph, digits_context: MakeContext, context: StageContext
) -> None:
    config = Qat(method="qat", teacher="none", loss=Loss(soft=0), train=Train(epochs=1, images=64))
    result = QatStage(config).apply(with_predictors, context)
    assert result.graph.module(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert not any(name.startswith("kept_fraction") for name in result.metrics)
