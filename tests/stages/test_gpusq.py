"""Feature losses, training without labels, and quantization-aware training (GPUSQ, sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.data import load_data
from vitslim.errors import StageError
from vitslim.graph.edits.fake_quant import quantized_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch_graph import sketch
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe import check_order, validate
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Distill, Qat, TwoFour
from vitslim.recipe.stages.training import Features, FeatureWeight, Loss, Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.distill.features import block_outputs, block_weights, critical_blocks, feature_losses
from vitslim.stages.distill.objective import Distillation
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.export.check import OnnxFile, check_stored_weights
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.quantize.qat.stage import QatStage
from vitslim.training import Batch
from vitslim.training.taps import Tapped, with_taps

QUICK = Train(epochs=2, batch=32, lr=1e-4, images=96)
FEATURES = Loss(hard=1, soft=10, feature=5)


@pytest.fixture
def context(tiny_graph: ModelGraph, tmp_path: Path) -> StageContext:
    data = load_data(Data(kind="digits", calibration=40, eval_images=60), tiny_graph.source, 0)
    return StageContext(data, 0, Silent(), _results({"dense": StageResult(tiny_graph)}), tmp_path)


def _results(found: Mapping[str, StageResult]) -> Any:
    return found.__getitem__


def test_taps_show_what_blocks_compute_and_share_parameters(tiny_graph: ModelGraph) -> None:
    outputs = block_outputs(tiny_graph)
    assert list(outputs) == ["blocks.0", "blocks.1"]
    tapped = with_taps(tiny_graph.module, list(outputs.values()))
    images = torch.randn(3, *tiny_graph.source.image)
    with torch.no_grad():
        logits, features = tapped(images)
        torch.testing.assert_close(logits, tiny_graph.module(images))
    assert [tuple(one.shape) for one in features] == [(3, *features[0].shape[1:])] * 2
    mine, theirs = (dict(one.named_parameters()) for one in (tapped, tiny_graph.module))
    assert all(mine[name] is theirs[name] for name in theirs)


def test_critical_blocks_are_the_last_third(tiny_graph: ModelGraph) -> None:
    assert critical_blocks(Features(), tiny_graph) == ("blocks.1",)
    assert critical_blocks(Features(blocks=("blocks.0",)), tiny_graph) == ("blocks.0",)
    with pytest.raises(StageError, match=r"no block 'blocks\.7'"):
        critical_blocks(Features(blocks=("blocks.7",)), tiny_graph)


def test_feature_loss_looks_at_counted_images_alone() -> None:
    student, teacher = torch.zeros(2, 3, 4, requires_grad=True), torch.stack([torch.ones(3, 4), 7 * torch.ones(3, 4)])
    only_first = feature_losses([student], [teacher], torch.tensor([True, False]))
    assert only_first.tolist() == [1.0]
    assert feature_losses([student], [teacher], torch.tensor([True, True])).tolist() == [25.0]
    none = feature_losses([student], [teacher], torch.tensor([False, False]))
    none.sum().backward()
    assert none.tolist() == [0.0]
    assert student.grad is not None and bool(student.grad.isfinite().all())


def test_objective_ignores_images_of_different_predictions() -> None:
    taught = Tapped(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), (torch.zeros(2, 3),))
    logits, features = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), (torch.tensor([[2.0] * 3, [100.0] * 3]),)
    batch = Batch(torch.zeros(2, 1), torch.tensor([0, 0]), torch.arange(2))
    config = Distill(loss=Loss(hard=0, soft=0, feature=1))
    losses = Distillation(config, lambda _: taught, ["blocks.1"])((logits, features), batch)
    assert {name: value.item() for name, value in losses.items()} == {"loss": 4.0, "feature_loss.blocks.1": 4.0}
    everything = config.model_copy(update={"features": Features(only_agreeing=False)})
    losses = Distillation(everything, lambda _: taught, ["blocks.1"])((logits, features), batch)
    assert losses["loss"].item() == pytest.approx(5002.0)
    losses = Distillation(config, lambda _: taught, ["blocks.1"], torch.tensor([0.5]))((logits, features), batch)
    assert (losses["loss"].item(), losses["feature_loss.blocks.1"].item()) == (2.0, 4.0)


def test_labels_of_the_teacher_replace_those_of_the_dataset() -> None:
    taught = Tapped(torch.tensor([[0.0, 9.0]]), ())
    config = Distill(loss=Loss(hard=1, soft=0), labels="teacher")
    logits = torch.tensor([[0.0, 3.0]])
    losses = [
        Distillation(config, lambda _: taught)(logits, Batch(torch.zeros(1, 1), torch.tensor([label]), torch.arange(1)))
        for label in (0, 1)
    ]
    assert losses[0]["loss"].item() == losses[1]["loss"].item() < 0.1


def test_block_weights_have_mean_one_and_follow_the_sign() -> None:
    losses = torch.tensor([0.1, 0.5, 2.0])
    falling, rising = (block_weights(losses, sign, 1.0) for sign in (-1, 1))
    assert falling.mean().item() == pytest.approx(1) and rising.mean().item() == pytest.approx(1)
    assert falling.argmax() == 0 and rising.argmax() == 2


def test_distillation_records_feature_losses(tiny_graph: ModelGraph, context: StageContext) -> None:
    sparse = TwoFourStage(TwoFour(method="two-four", permute=("mlp", "v"))).apply(tiny_graph, context).graph
    stage = DistillStage(Distill(loss=FEATURES, labels="teacher", train=QUICK))
    result = stage.apply(sparse, context)
    assert stage.ensures(sparse, result.graph) == []
    assert result.metrics["feature_loss.blocks.1"] > 0
    assert result.metrics["loss_last"] < result.metrics["loss_first"]
    assert result.graph.masks.keys() == sparse.masks.keys()


def test_features_of_another_width_are_refused(tiny_graph: ModelGraph, context: StageContext) -> None:
    kwargs = {**tiny_graph.source.kwargs, "embed_dim": 96}
    wide = trace_timm(tiny_graph.source.timm, kwargs)
    there = replace(context, result=_results({"dense": StageResult(wide)}))
    with pytest.raises(StageError, match="features of"):
        DistillStage(Distill(loss=FEATURES, train=QUICK)).apply(tiny_graph, there)


@pytest.mark.parametrize("bits", [8, 4])
def test_training_learns_steps_and_keeps_the_mask(tiny_graph: ModelGraph, context: StageContext, bits: int) -> None:
    pattern = "2:4-pairs" if bits == 4 else "2:4"
    sparse = TwoFourStage(TwoFour(method="two-four", pattern=pattern)).apply(tiny_graph, context).graph
    earlier = StageResult(sparse, metrics={"feature_loss.blocks.1": 0.3})
    there = replace(context, result=_results({"previous": StageResult(sparse), "distill": earlier}))
    config = Qat(
        method="qat", bits=bits, activation_bits=bits, loss=FEATURES, feature_weight=FeatureWeight(), train=QUICK
    )
    stage = QatStage(config)
    assert stage.requires(sketch(sparse)) == []
    result = stage.apply(sparse, there)
    assert stage.ensures(sparse, result.graph) == []
    assert sketch(result.graph).cost() == stage.estimate(sketch(sparse)).cost()
    assert len(quantized_layers(result.graph.module)) == 10
    untrained = stage.placing.apply(sparse, there).graph.parameters()
    steps = {name for name in untrained if name.endswith("_scale")}
    assert steps and all(not torch.equal(untrained[name], result.graph.parameters()[name]) for name in steps)
    assert any(note.what.startswith("feature weight") for note in result.changes)
    assert result.metrics["loss_last"] < result.metrics["loss_first"]
    path = context.workdir / "model.onnx"
    export_onnx(result.graph, path)
    check_stored_weights(path, result.graph)
    assert OnnxFile(path)(torch.randn(3, *tiny_graph.source.image)).shape == (3, 10)


def test_scales_of_blocks_are_learned_beside_float_inputs(tiny_graph: ModelGraph, context: StageContext) -> None:
    there = replace(context, result=_results({"previous": StageResult(tiny_graph)}))
    keys: dict[str, Any] = {
        "bits": 4,
        "first_last_bits": 6,
        "group_size": 32,
        "activations": "float",
        "skip": ("head",),
    }
    config = Qat(method="qat", **keys, loss=FEATURES, train=QUICK)
    stage = QatStage(config)
    result = stage.apply(tiny_graph, there)
    assert stage.ensures(tiny_graph, result.graph) == []
    assert sketch(result.graph).cost() == stage.estimate(sketch(tiny_graph)).cost()
    assert sketch(result.graph).bits["patch_embed.proj.weight"].weight == 6
    name = "vitslim.q.blocks.0.attn.qkv.weight_scale"
    before, after = stage.placing.apply(tiny_graph, there).graph.parameters()[name], result.graph.parameters()[name]
    assert after.shape == (192, 2)
    assert (after != before).float().mean() > 0.9
    assert result.metrics["loss_last"] < result.metrics["loss_first"]
    path = context.workdir / "model.onnx"
    export_onnx(result.graph, path)
    check_stored_weights(path, result.graph)


def test_training_starts_from_the_rounding_that_a_recipe_names(tiny_graph: ModelGraph, context: StageContext) -> None:
    found = {}
    for rounding in ("gptq", "nearest"):
        placing = QatStage(Qat(method="qat", bits=4, rounding=rounding)).placing
        found[rounding] = placing.apply(tiny_graph, context).metrics["calibration_sqnr_db"]
    assert found["gptq"] > found["nearest"] + 1


def test_a_missing_feature_loss_is_named(tiny_graph: ModelGraph, context: StageContext) -> None:
    there = replace(context, result=_results({"previous": StageResult(tiny_graph), "distill": StageResult(tiny_graph)}))
    stage = QatStage(Qat(method="qat", loss=FEATURES, feature_weight=FeatureWeight(), train=QUICK))
    with pytest.raises(StageError, match=r"has no feature loss of blocks\.1"):
        stage.apply(tiny_graph, there)


@pytest.mark.parametrize(
    ("stages", "where", "says"),
    [
        ([{"distill": {"teacher": "none", "labels": "teacher"}}], "stages.0.distill.labels", "no teacher"),
        ([{"distill": {"teacher": "none", "loss": {"hard": 0, "feature": 1}}}], "stages.0.distill.loss", "nothing to"),
        ([{"quantize": {"method": "qat"}}, "distill"], "stages.1.distill", "rule O3"),
        ([{"quantize": {"method": "qat"}}, "quantize"], "stages.1.quantize", "second quantize"),
        ([{"quantize": {"method": "qat", "feature_weight": {}}}], "stages.0.quantize.feature_weight", "switched off"),
        ([{"distill": {"loss": {"feature": 1}, "name": "sparse"}},
          {"quantize": {"method": "qat", "loss": {"feature": 1}, "feature_weight": {"stage": "sparce"}}}],
         "stages.1.quantize.feature_weight.stage", "no stage 'sparce'"),
        ([{"prune": {"method": "two-four"}}, {"prune": {"method": "depgraph"}}], "stages.1.prune", "groups of four"),
    ],
)  # fmt: skip
def test_contradictions_are_found_at_plan(stages: list[Any], where: str, says: str) -> None:
    document = {"name": "test", "model": {"timm": "x", "checkpoint": "w"}, "data": {"kind": "digits"},
                "stages": [*stages, "export"]}  # fmt: skip
    errors = {p.where: p.message for p in check_order(validate(document))[0]}
    assert list(errors) == [where]
    assert says in errors[where]
