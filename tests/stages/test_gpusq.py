"""Quantization-aware training of sparse models (GPUSQ)."""

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
from vitslim.graph.sketch import sketch
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Qat, TwoFour
from vitslim.recipe.stages.training import FeatureWeight, Loss
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.check import OnnxFile, check_stored_weights
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.quantize.insert import compare, insert_quantizers
from vitslim.stages.quantize.qat.stage import QatStage
from vitslim.stages.quantize.scheme import QuantScheme

QUICK = Train(epochs=2, batch=32, lr=1e-4, images=96)
FEATURES = Loss(hard=1, soft=10, feature=5)


@pytest.fixture
def context(tiny_graph: ModelGraph, tmp_path: Path) -> StageContext:
    data = load_data(Data(kind="digits", calibration=40, eval_images=60), tiny_graph.source, 0)
    return StageContext(data, 0, Silent(), _results({"dense": StageResult(tiny_graph)}), tmp_path)


def _results(found: Mapping[str, StageResult]) -> Any:
    return found.__getitem__


@pytest.mark.parametrize("bits", [pytest.param(8, marks=pytest.mark.slow), 4])
def test_training_learns_scales_and_keeps_the_mask(tiny_graph: ModelGraph, context: StageContext, bits: int) -> None:
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
    untrained = insert_quantizers(sparse, stage.scheme, there).graph.parameters()
    steps = {name for name in untrained if name.endswith("_scale")}
    assert steps and all(not torch.equal(untrained[name], result.graph.parameters()[name]) for name in steps)
    assert any(note.result.startswith("feature weight") for note in result.changes)
    assert result.metrics["loss_last"] < result.metrics["loss_first"]
    path = context.workdir / "model.onnx"
    export_onnx(result.graph, path)
    check_stored_weights(path, result.graph)
    assert OnnxFile(path)(torch.randn(3, *tiny_graph.source.image)).shape == (3, 10)


@pytest.mark.slow
def test_group_scales_are_learned_with_float_activations(tiny_graph: ModelGraph, context: StageContext) -> None:
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
    before = insert_quantizers(tiny_graph, stage.scheme, there).graph.parameters()[name]
    after = result.graph.parameters()[name]
    assert after.shape == (192, 2)
    assert (after != before).float().mean() > 0.9
    assert result.metrics["loss_last"] < result.metrics["loss_first"]
    path = context.workdir / "model.onnx"
    export_onnx(result.graph, path)
    check_stored_weights(path, result.graph)


def test_training_starts_from_the_rounding_that_a_recipe_names(tiny_graph: ModelGraph, context: StageContext) -> None:
    found = {}
    for rounding in ("gptq", "nearest"):
        scheme = QuantScheme.of(Qat(method="qat", bits=4, rounding=rounding))
        quantized = insert_quantizers(tiny_graph, scheme, context).graph
        found[rounding] = compare(tiny_graph, quantized, context)["calibration_sqnr_db"]
    assert found["gptq"] > found["nearest"] + 1


def test_a_missing_feature_loss_is_named(tiny_graph: ModelGraph, context: StageContext) -> None:
    there = replace(context, result=_results({"previous": StageResult(tiny_graph), "distill": StageResult(tiny_graph)}))
    stage = QatStage(Qat(method="qat", loss=FEATURES, feature_weight=FeatureWeight(), train=QUICK))
    with pytest.raises(StageError, match=r"has no feature loss of blocks\.1"):
        stage.apply(tiny_graph, there)
