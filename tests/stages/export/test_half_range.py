"""Half-precision files: operators beyond 65,504 stay in float32, and the report names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vitslim.graph.model_graph import ModelGraph
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.progress import Silent
from vitslim.recipe.formats.file_form import FileForm
from vitslim.recipe.formats.profiles import FP16
from vitslim.recipe.stages import Export
from vitslim.stages.contract import StageContext
from vitslim.stages.export.check import OnnxFile
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.stage import ExportStage

HUGE = 2e5
IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Lines(Silent):
    """Keeps what a stage says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def huge(tiny_graph: ModelGraph) -> ModelGraph:
    """A two-block ViT with one channel of its residual stream beyond the range of float16 after the first MLP."""
    with torch.no_grad():
        tiny_graph.parameters()["blocks.0.mlp.fc2.bias"][3] = HUGE
    return tiny_graph


def test_the_stage_names_the_first_overflow_and_lists_every_operator(
    huge: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    lines = Lines()
    result = ExportStage(Export(profile="fp16")).apply(huge, digits_context(huge, progress=lines))
    (line,) = (line for line in lines.lines if "half precision" in line)
    assert line.startswith("half precision: Add computes 2") and "beyond 65,504 (blocks.0.mlp.fc2)" in line
    kept = [(note.layer, note.reason) for note in result.skipped if note.result == "stays in float32"]
    assert len(kept) == int(line.rpartition("; ")[2].split()[0])
    assert kept[0][0] == "blocks.0.mlp.fc2" and kept[0][1].startswith("Add computes 200,0")
    assert any(layer == "blocks.1.mlp.fc2" and "LayerNormalization reads" in reason for layer, reason in kept)
    assert not any("Softmax" in reason for _, reason in kept)
    assert result.metrics["parity_sqnr_db"] > 40


def test_the_file_computes_what_the_graph_computes(huge: ModelGraph, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    summary = export_onnx(huge, path, FP16, form=FileForm(batch=2, opset=17), images=IMAGES.numpy())
    with torch.no_grad():
        expected = huge.module(IMAGES)
    torch.testing.assert_close(OnnxFile(path)(IMAGES), expected, rtol=0, atol=3e-3)
    kept = {one.node for one in summary.overflows}
    nodes = onnx.load(path).graph.node
    narrow = {node.input[0] for node in nodes if node.op_type == "Cast" and node.attribute[0].i == 10}
    assert kept and not narrow & {name for node in nodes if node.name in kept and node.op_type == "Add"
                                  for name in node.output}  # fmt: skip
    assert {layer.weight_bits for layer in inspect(path).contents.layers} == {16}


@pytest.mark.slow
def test_a_constant_beyond_the_range_stays_in_float32(tiny_graph: ModelGraph, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_graph.parameters()["blocks.1.mlp.fc1.weight"][0, 0] = HUGE
    path = tmp_path / "model.onnx"
    summary = export_onnx(tiny_graph, path, FP16, images=IMAGES.numpy())
    first = summary.overflows[0]
    assert (first.operator, first.layer) == ("MatMul", "blocks.1.mlp.fc1") and first.value >= HUGE
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    assert stored["blocks.1.mlp.fc1.weight"].dtype == np.float32
    assert stored["blocks.1.mlp.fc1.weight"].max() == np.float32(HUGE)
    bits = {layer.name: layer.weight_bits for layer in inspect(path).contents.layers}
    assert (bits["blocks.1.mlp.fc1"], bits["blocks.1.attn.qkv"]) == (32, 16)
