"""The workload of an exported file has the costs of its graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import cost
from vitslim.stages.export.graph_passes.unused_tokens import remove_unused_tokens
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.workload import read_workload


def pruned(graph: ModelGraph) -> ModelGraph:
    return slice_axes(graph, {"embed": range(0, 64, 2), "blocks.0.mlp": range(100), "blocks.1.heads": [1]})


def squeezed(graph: ModelGraph) -> ModelGraph:
    return insert_squeeze(graph, {"blocks.0": 6})


def quantized(graph: ModelGraph) -> ModelGraph:
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    sites = [FakeQuantSite(f"blocks.{block}.{layer}.weight", 8, 8) for block in (0, 1) for layer in layers]
    new = insert_fake_quant(graph, sites)
    with torch.no_grad():
        for name, parameter in new.module.named_parameters():
            if name.endswith("_scale"):
                parameter.fill_(0.01)
    return new


CHAINS: dict[str, tuple[Callable[[ModelGraph], ModelGraph], ...]] = {
    "dense": (),
    "pruned": (pruned,),
    "squeezed": (squeezed,),
    "quantized": (quantized,),
    "all": (pruned, squeezed, quantized),
}


@pytest.mark.parametrize(
    "chain", [pytest.param(name, marks=[pytest.mark.slow] * (name in {"pruned", "squeezed"})) for name in CHAINS]
)
def test_costs_are_those_of_the_graph(tiny_graph: ModelGraph, tmp_path: Path, chain: str) -> None:
    graph = tiny_graph
    for step in CHAINS[chain]:
        graph = step(graph)
    export_onnx(graph, tmp_path / "model.onnx")
    workload = read_workload(tmp_path / "model.onnx")
    if "quantized" in {step.__name__ for step in CHAINS[chain]}:
        remove_unused_tokens(graph)  # as its file does
    expected = cost(graph)
    assert (workload.macs, workload.bops) == (expected.macs, expected.bops)
    assert read_workload(tmp_path / "model.onnx", 3).macs == 3 * expected.macs
    assert workload.params == pytest.approx(expected.params, rel=0.02)
    assert not workload.unknown
    roles = {o.role for o in workload.operators if o.macs and o.op != "attention"}
    assert roles == {"patch_embed.proj", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "head"}
