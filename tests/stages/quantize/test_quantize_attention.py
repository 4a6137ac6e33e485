"""Quantized attention matmuls: their values, saving and loading, removal, export and refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitslim.backends.measured.kernels import read_kernels
from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.edits.fake_quant import remove_fake_quant
from vitslim.graph.edits.quantize_attention import (
    AttentionSite,
    attention_blocks,
    attention_scale_name,
    quantize_attention,
)
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.recipe.stages import Export, Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.export.check import OnnxFile
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.stage import ExportStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.training.evaluate import sqnr_db

SWIN: dict[str, Any] = {"img_size": 64, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
SCALES = {"query": 0.02, "key": 0.03, "probability": 0.004, "value": 0.05}


def rounded(x: Tensor, scale: float, low: int, high: int) -> Tensor:
    return (x / scale).round().clamp(low, high) * scale


def test_both_attention_matmuls_read_quantized_operands(tiny_graph: ModelGraph) -> None:
    """The softmax and the matmuls of both heads by hand, from the output of the first qkv layer."""
    scales = {attention_scale_name("blocks.0", name): torch.tensor(value) for name, value in SCALES.items()}
    graph = quantize_attention(tiny_graph, [AttentionSite.uniform("blocks.0", 8)], scales)
    seen = {}
    for model in (tiny_graph, graph):
        copy = model.copy()
        qkv, proj = (
            next(
                n
                for n in copy.module.graph.nodes
                if f"blocks_0_attn_{name}_weight" in str(n.args) and "linear" in n.name
            )
            for name in ("qkv", "proj")
        )
        (output,) = (node for node in copy.module.graph.nodes if node.op == "output")
        output.args = ((qkv, proj.args[0]),)
        copy.module.recompile()
        with torch.no_grad():
            seen[model is graph] = copy.module(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    before, found = seen[True]
    torch.testing.assert_close(before, seen[False][0])
    q, k, v = before.reshape(2, 17, 3, 2, 32).permute(2, 0, 3, 1, 4)
    q, k, v = (rounded(x, SCALES[n], -128, 127) for x, n in ((q / 32**0.5, "query"), (k, "key"), (v, "value")))
    probabilities = rounded((q @ k.mT).softmax(-1), SCALES["probability"], 0, 255)
    expected = (probabilities @ v).transpose(1, 2).reshape(2, 17, 64)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - seen[False][1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("model", "keys"),
    [("vit_tiny_patch16_224", None), pytest.param("swin_tiny_patch4_window7_224", SWIN, marks=pytest.mark.slow)],
)
def test_quantized_attention_is_saved_loaded_and_removed(
    model: str, keys: Any, tiny_kwargs: dict[str, Any], digits_context: Callable[..., StageContext], tmp_path: Path
) -> None:
    graph = trace_timm(model, keys or tiny_kwargs)
    context = digits_context(graph, calibration=20)
    quantized = PtqStage(Ptq(attention=True)).apply(graph, context).graph
    images = torch.stack([context.data.val[index][0] for index in range(4)])
    with torch.no_grad():
        logits = quantized.module(images)
        plain = PtqStage(Ptq()).apply(graph, context).graph
        assert sqnr_db(graph.module(images), logits) > 25
        assert not torch.equal(logits, plain.module(images))
        save_graph(quantized, tmp_path)
        assert torch.equal(load_graph(tmp_path).module(images), logits)
        assert attention_blocks(quantized) == attention_blocks(graph)
        for one, other in zip(find_anatomy(graph).blocks, find_anatomy(quantized).blocks, strict=True):
            assert one.attention is not None and other.attention is not None
            assert one.attention.scale == pytest.approx(other.attention.scale)
            assert (one.attention.heads, one.attention.biased) == (other.attention.heads, other.attention.biased)
        floats = remove_fake_quant(quantized)
        assert "fake_quant" not in str(floats.module.graph)
        assert not any(name.startswith("vitslim.q.") for name in floats.parameters())
    assert sketch(quantized).cost().bops == PtqStage(Ptq(attention=True)).estimate(sketch(graph)).cost().bops
    assert sketch(quantized).cost().bops < sketch(plain).cost().bops


def test_scales_match_the_calibrated_ranges(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    result = PtqStage(Ptq(attention=True)).apply(tiny_graph, digits_context(tiny_graph))
    scale = {name: float(tensor_of(result.graph.module, attention_scale_name("blocks.1", name))) for name in SCALES}
    assert 1 / 17 / 255 <= scale["probability"] <= 1 / 255
    assert all(0 < scale[name] < 1 for name in SCALES)
    notes = [note for note in result.changes if note.layer.endswith(".attention")]
    assert [note.layer for note in notes] == ["blocks.0.attention", "blocks.1.attention"]
    assert notes[0].result == "INT8 queries, keys and values, UINT8 probabilities"


def test_the_file_runs_integer_attention_without_violations(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], tmp_path: Path
) -> None:
    context = digits_context(tiny_graph)
    graph = PtqStage(Ptq(attention=True)).apply(tiny_graph, context).graph
    path = tmp_path / "model.onnx"
    export_onnx(graph, path, ORT_CPU)
    kinds = Counter(read_kernels(path, "the file").counts)
    assert kinds["MatMul"] + kinds["FusedMatMul"] == 0
    assert kinds["MatMulIntegerToFloat"] + kinds["QLinearMatMul"] == 2 * 2
    assert not inspect(path).violations
    images = torch.stack([context.data.val[index][0] for index in range(8)])
    with torch.no_grad():
        assert sqnr_db(graph.module(images), OnnxFile(path)(images)) > 25


def test_refusals(tiny_graph: ModelGraph) -> None:
    stage = PtqStage(Ptq(attention=True))
    after = stage.estimate(sketch(tiny_graph))
    (problem,) = ExportStage(Export()).requires(after)
    assert problem.where == "profile" and "unsigned" in problem.message
    assert not ExportStage(Export(profile="ort-cpu")).requires(after)
    (problem,) = stage.requires(sketch(trace_timm("mixer_s32_224", {"img_size": 64})))
    assert problem.where == "attention" and "no attention" in problem.message
