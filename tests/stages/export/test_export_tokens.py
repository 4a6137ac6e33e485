"""Graphs with squeezed tokens export with a free batch and constant token counts, and their files name the squeezes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages import Export, Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.export.check import OnnxFile
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.stage import ExportStage
from vitslim.stages.quantize.ptq.stage import PtqStage

SLOW_METHODS = [pytest.param(method, marks=pytest.mark.slow) for method in ("evit", "prune-only")]


@pytest.mark.parametrize("method", ["etps", *SLOW_METHODS])
def test_squeezed_graph_exports_with_its_batch_free(
    method: str, tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], tmp_path: Path
) -> None:
    squeezed = insert_squeeze(tiny_graph, {"blocks.0": 9, "blocks.1": 5}, method)
    images = torch.randn(7, *squeezed.source.image, generator=torch.Generator().manual_seed(0))
    path = export_onnx(squeezed, tmp_path / "squeezed.onnx").path
    file = onnx.load(path)
    kinds = {node.op_type for node in file.graph.node}
    (about,) = (json.loads(prop.value) for prop in file.metadata_props if prop.key == "vitslim.token_squeezes")
    first, second = (11, 7) if method == "evit" else (10, 6)
    sizes = {"blocks.0": f"17 to {first}", "blocks.1": f"{first} to {second}"}
    assert about == {block: f"{size} tokens ({method})" for block, size in sizes.items()}
    assert not kinds & {"GatherElements", "ScatterElements", "ScatterND", "NonZero", "Loop", "If"}
    for count in (1, 2, 7):
        with torch.no_grad():
            expected = squeezed.module(images[:count])
        torch.testing.assert_close(OnnxFile(path)(images[:count]), expected, rtol=0, atol=1e-5)
    context = digits_context(squeezed, calibration=64)
    quantized = PtqStage(Ptq(method="ptq")).apply(squeezed, context).graph
    ExportStage(Export()).apply(quantized, context)
