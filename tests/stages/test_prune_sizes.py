"""Sizes that structural pruning gives for models of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.data import load_data
from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch_graph import sketch
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import DepGraph
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.depgraph_stage import DepGraphStage


def unknown_stage(name: str) -> StageResult:
    raise StageError(f"no stage {name}")


def prune(graph: ModelGraph, folder: Path) -> StageResult:
    """Half of every axis, by magnitude."""
    data = load_data(Data(kind="digits", calibration=8), graph.source, seed=0)
    stage = DepGraphStage(DepGraph(method="depgraph", ratio=0.5))
    result = stage.apply(graph, StageContext(data, 0, Silent(), unknown_stage, folder))
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
def test_sizes_of_timm(name: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    """Sizes of ViT and DeiT, cut to one block: the pruned graph runs and all its layers divide by 16."""
    graph = trace_timm(name, {"depth": 1, "num_classes": 10, **kwargs})
    result = prune(graph, tmp_path)
    with torch.no_grad():
        assert torch.isfinite(result.graph.module(torch.randn(2, *graph.source.image))).all()
    for layer in sketch(result.graph).linears:
        assert layer.in_features % 16 == 0
        assert layer.out_features % 16 == 0 or layer.role == "head"
    assert result.skipped == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "before", "after"), [("vit_base_patch32_224", 88.22, 22.88), ("vit_base_patch16_224", 86.57, 22.05)]
)
def test_published_sizes(name: str, before: float, after: float, tmp_path: Path) -> None:
    """Torch-Pruning's ViT-B/16 and B/32 at ratio 0.5: parameters in millions (DepGraph, section 9)."""
    graph = trace_timm(name, {})
    assert sketch(graph).cost().params / 1e6 == pytest.approx(before, abs=0.005)
    result = prune(graph, tmp_path)
    sizes = {axis.name: axis.size for axis in result.graph.axes.axes}
    assert (sizes["embed"], sizes["blocks.7.qk"], sizes["blocks.7.v"], sizes["blocks.7.mlp"]) == (384, 32, 32, 1536)
    params = sum(weight.numel() for weight in result.graph.parameters().values())
    assert params / 1e6 == pytest.approx(after, abs=0.005)
    assert sketch(result.graph).cost().params == params
