"""2:4 masks on a traced ViT: exact, fixed under training, and refused where they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.edits import Mask
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.stages import TwoFour
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.two_four.patterns import TWO_OF_FOUR, keeps_pattern
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.training.loop import train

Sparsify = Callable[..., StageResult]
GEMM = {
    "patch_embed.proj.weight",
    *(f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
}


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph, calibration=80)


@pytest.fixture
def sparsify(tiny_graph: ModelGraph, context: StageContext) -> Sparsify:
    def run(*layers: str, graph: ModelGraph | None = None) -> StageResult:
        stage = TwoFourStage(TwoFour(method="two-four", layers=layers or "gemm"))
        result = stage.apply(graph or tiny_graph, context)
        assert stage.ensures(graph or tiny_graph, result.graph) == []
        return result

    return run


def test_gemm_masks_every_layer_but_the_head(tiny_graph: ModelGraph, sparsify: Sparsify) -> None:
    before = {name: weight.clone() for name, weight in tiny_graph.parameters().items()}
    result = sparsify()
    assert result.graph.masks.keys() == GEMM
    edit = result.graph.edits[-1]
    assert isinstance(edit, Mask)
    assert set(edit.parameters) == GEMM
    for name, weight in result.graph.parameters().items():
        expected = before[name] * result.graph.masks[name] if name in GEMM else before[name]
        assert torch.equal(weight, expected)
        assert torch.equal(tiny_graph.parameters()[name], before[name])
    assert tiny_graph.masks == {}


def test_patch_embedding_is_masked_along_the_flattened_kernel(sparsify: Sparsify) -> None:
    mask = sparsify().graph.masks["patch_embed.proj.weight"]
    assert mask.shape == (64, 3, 8, 8)
    assert keeps_pattern(mask.flatten(start_dim=1), TWO_OF_FOUR)


def test_kept_magnitude_is_a_fraction_of_the_masked_layers(sparsify: Sparsify, tiny_graph: ModelGraph) -> None:
    result = sparsify()
    kept = sum(float(result.graph.parameters()[name].detach().abs().double().sum()) for name in GEMM)
    total = sum(float(tiny_graph.parameters()[name].detach().abs().double().sum()) for name in GEMM)
    assert result.metrics["kept_magnitude"] == pytest.approx(kept / total, rel=1e-9)
    assert 0.7 < result.metrics["kept_magnitude"] < 0.9


def test_the_estimate_equals_the_result_of_two_four(tiny_graph: ModelGraph, sparsify: Sparsify) -> None:
    stage = TwoFourStage(TwoFour(method="two-four"))
    estimate = stage.estimate(sketch(tiny_graph))
    assert estimate.cost() == sketch(sparsify().graph).cost()
    assert estimate.cost().bops < sketch(tiny_graph).cost().bops


def test_masks_stay_exact_over_ten_optimizer_steps(sparsify: Sparsify, context: StageContext) -> None:
    graph = sparsify().graph
    before = {name: weight.detach().clone() for name, weight in graph.parameters().items()}

    def objective(logits: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": torch.nn.functional.cross_entropy(logits, batch.labels)}

    config = Train(epochs=1, batch=8, lr=1e-2)
    metrics = train(graph.module, context.data.calibration, objective, config, 0, graph.masks, Silent())
    assert metrics["steps"] == 10
    for name, mask in graph.masks.items():
        weight = graph.parameters()[name].detach()
        assert keeps_pattern(mask.flatten(start_dim=1), TWO_OF_FOUR)
        assert not weight[~mask].any()
        assert not torch.equal(weight, before[name])


def test_layers_key_changes_the_result(sparsify: Sparsify) -> None:
    assert sparsify("fc1", "fc2").graph.masks.keys() == {name for name in GEMM if ".mlp." in name}
    assert sparsify("blocks.1.attn.qkv").graph.masks.keys() == {"blocks.1.attn.qkv.weight"}


def odd_model(embed_dim: int, hidden: int) -> ModelGraph:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": embed_dim, "num_classes": 10}
    ratio = (hidden + 0.5) / embed_dim
    return trace_timm("vit_tiny_patch16_224", {**sizes, "depth": 1, "num_heads": 2, "mlp_ratio": ratio})


def test_layers_that_do_not_divide_are_skipped_with_the_reason(context: StageContext) -> None:
    graph = odd_model(48, 100)
    result = TwoFourStage(TwoFour(method="two-four")).apply(graph, context)
    assert {note.layer: note.reason for note in result.skipped} == {
        "blocks.0.mlp.fc1.weight": "100 outputs are not a multiple of 8",
        "blocks.0.mlp.fc2.weight": "100 inputs are not a multiple of 16",
    }
    assert result.graph.masks.keys() == {
        "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight"
    }  # fmt: skip


def test_a_named_layer_that_does_not_divide_is_refused_with_both_reasons(context: StageContext) -> None:
    with pytest.raises(StageError, match="100 outputs are not a multiple of 8 and 50 inputs are not a multiple of 16"):
        TwoFourStage(TwoFour(method="two-four", layers=("fc1",))).apply(odd_model(50, 100), context)


def test_a_model_without_a_fitting_layer_is_refused(context: StageContext) -> None:
    with pytest.raises(StageError, match="no layer of this model can be 2:4 sparse"):
        TwoFourStage(TwoFour(method="two-four")).apply(odd_model(50, 100), context)


@pytest.mark.parametrize(("layer", "hint"), [("qvk", "qkv"), ("blocks.0.mlp.fc9", "blocks.0.mlp.fc")])
def test_an_unknown_layer_is_refused(sparsify: Sparsify, layer: str, hint: str) -> None:
    with pytest.raises(StageError, match=f"no layer is called '{layer}'") as error:
        sparsify(layer)
    assert hint in error.value.hint


def test_a_second_mask_is_refused(sparsify: Sparsify) -> None:
    with pytest.raises(StageError, match="already"):
        sparsify(graph=sparsify("fc1").graph)


def test_violated_postconditions_are_found(sparsify: Sparsify, tiny_graph: ModelGraph) -> None:
    stage = TwoFourStage(TwoFour(method="two-four"))
    result = sparsify().graph
    result.masks["blocks.0.mlp.fc1.weight"][0, :4] = True
    with torch.no_grad():
        result.parameters()["blocks.0.mlp.fc2.weight"].fill_(1.0)
    del result.masks["blocks.1.mlp.fc1.weight"]
    problems = {problem.where: problem.message for problem in stage.ensures(tiny_graph, result)}
    assert problems == {
        "blocks.0.mlp.fc1.weight": "its mask is not 2:4",
        "blocks.0.mlp.fc2.weight": "has nonzero weights outside its mask",
        "blocks.1.mlp.fc1.weight": "has no mask",
    }
