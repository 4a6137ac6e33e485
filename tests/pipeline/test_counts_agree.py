"""The costs of a graph and of its ONNX file, which different code computes, are equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitslim.backends.registry import Simulated, parse_backend
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import cost, sketch
from vitslim.stages.export.graph_passes.unused_tokens import remove_unused_tokens
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.workload import read_workload


@pytest.mark.slow
def test_macs_of_a_compressed_graph(tiny_graph: ModelGraph, tmp_path: Path) -> None:
    graph = slice_axes(tiny_graph, {"blocks.0.mlp": range(96), "blocks.1.v": range(16)})
    graph = insert_squeeze(graph, {"blocks.0": 9})
    export_onnx(graph, tmp_path / "model.onnx")
    quantized = insert_fake_quant(graph, [FakeQuantSite(x.weight, 8, 8) for x in sketch(graph).linears])
    export_onnx(quantized, tmp_path / "quantized.onnx")
    read = quantized.copy()
    remove_unused_tokens(read)
    assert cost(read).macs < cost(graph).macs == cost(quantized).macs
    for batch in (1, 3):
        assert read_workload(tmp_path / "model.onnx", batch).macs == batch * cost(graph).macs
        assert read_workload(tmp_path / "quantized.onnx", batch).macs == batch * cost(read).macs


@pytest.fixture(scope="module")
def deit_tiny_file(deit_tiny: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(deit_tiny, tmp_path_factory.mktemp("deit") / "model.onnx").path


def test_macs_of_deit_tiny(deit_tiny: ModelGraph, deit_tiny_file: Path) -> None:
    assert read_workload(deit_tiny_file).macs == cost(deit_tiny).macs == 1_253_683_200


def test_cycles_of_deit_tiny_on_a_systolic_array(deit_tiny_file: Path) -> None:
    """The six GEMM classes of DeiT-Tiny, 128x128 weight stationary: 347,280 cycles; other work in rows of its own."""
    backend = parse_backend("sim:systolic")
    assert isinstance(backend, Simulated)
    estimate = backend.estimate(deit_tiny_file, 1)
    blocks = [row for row in estimate.rows if row.op in {"gemm", "attention"} and row.count in {12, 36}]
    assert sum(row.cycles for row in blocks) == 347_280
    assert sum(row.macs for row in blocks) == 1_224_589_824
    assert estimate.cycles == sum(row.cycles for row in estimate.rows)
    assert {row.op for row in estimate.rows} >= {"conv", "softmax", "norm", "elementwise"}
