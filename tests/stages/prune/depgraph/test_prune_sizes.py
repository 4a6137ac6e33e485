"""Sizes that structural pruning gives for models of timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.graph.trace import trace_timm
from vitslim.recipe.stages import DepGraph
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.depgraph.schedule import choose_cuts
from vitslim.stages.prune.depgraph.stage import DepGraphStage


def prune(graph: ModelGraph, context: StageContext) -> StageResult:
    """Half of every axis, by magnitude."""
    stage = DepGraphStage(DepGraph(method="depgraph", pruning_ratio=0.5))
    result = stage.apply(graph, context)
    assert stage.ensures(graph, result.graph) == []
    return result


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"qk_norm": True}),
        ("vit_small_patch32_224", {}),
        ("vit_large_patch32_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
    ],
)
def test_sizes_of_timm(name: str, kwargs: dict[str, Any], digits_context: Callable[..., StageContext]) -> None:
    """Sizes of ViT and DeiT, cut to one block: the pruned graph runs and all its layers divide by 16."""
    graph = trace_timm(name, {"depth": 1, "num_classes": 10, **kwargs})
    result = prune(graph, digits_context(graph))
    with torch.no_grad():
        assert torch.isfinite(result.graph.module(torch.randn(2, *graph.source.image))).all()
    for layer in sketch(result.graph).linears:
        assert layer.in_features % 16 == 0
        assert layer.out_features % 16 == 0 or layer.role == "head"
    assert result.skipped == ()


@pytest.mark.parametrize(("ratio", "dims"), [(0.54, (353, 29, 29, 1413)), (0.5, (384, 32, 32, 1536))])
def test_dims_of_vit_base(base_block: ModelSketch, ratio: float, dims: tuple[int, ...]) -> None:
    """The sizes that Torch-Pruning 1.6 gives for ViT-B (DepGraph, section 9)."""
    keep = choose_cuts(base_block, DepGraph(method="depgraph", pruning_ratio=ratio, round_to=1)).keep
    assert tuple(keep[name] for name in ("embed", "blocks.0.qk", "blocks.0.v", "blocks.0.mlp")) == dims


@pytest.fixture(scope="module")
def base_block() -> ModelSketch:
    """ViT-B cut to one block."""
    return sketch(trace_timm("vit_base_patch16_224", {"depth": 1, "num_classes": 10}))


def test_resnet18_at_one_half() -> None:
    """11.69 to 3.06 M parameters. Torch-Pruning prints 1.822 and 0.487 GMACs: about three more an element of each
    batch norm's output, 7.8 and 3.9 M, than matmuls alone (DepGraph, section 9)."""
    before = sketch(trace_timm("resnet18", {}))
    after = DepGraphStage(DepGraph(method="depgraph", pruning_ratio=0.5)).estimate(before)
    assert before.cost().params / 1e6 == pytest.approx(11.69, abs=0.005)
    assert before.cost().macs / 1e9 == pytest.approx(1.822 - 0.0078, abs=0.001)
    assert after.cost().params / 1e6 == pytest.approx(3.06, abs=0.005)
    assert after.cost().macs / 1e9 == pytest.approx(0.487 - 0.0039, abs=0.0005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("vit_base_patch32_224", (88.22, 22.88), (4.409, 1.143)),
        ("vit_base_patch16_224", (86.57, 22.05), (17.56, 4.60)),
        ("resnet18", (11.69, 3.06), (1.814, 0.483)),
    ],
)
def test_published_sizes(
    name: str, params: tuple[float, float], macs: tuple[float, float], digits_context: Callable[..., StageContext]
) -> None:
    """Torch-Pruning at ratio 0.5: parameters in millions and GMACs, dense and pruned (DepGraph, section 9)."""
    graph = trace_timm(name, {})
    result = prune(graph, digits_context(graph))
    for model, million, giga in zip((graph, result.graph), params, macs, strict=True):
        cost = sketch(model).cost()
        assert cost.params / 1e6 == pytest.approx(million, abs=0.005)
        assert cost.macs / 1e9 == pytest.approx(giga, rel=0.004)
        assert cost.params == sum(weight.numel() for weight in model.parameters().values())
    assert torch.isfinite(result.graph.module(torch.randn(1, 3, 224, 224))).all()
