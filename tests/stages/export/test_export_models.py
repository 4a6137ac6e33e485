"""Export of whole timm families, and of DeiT-Tiny with its real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.backends.measured.kernels import read_kernels
from vitslim.data import load_data
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Export, Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.check import OnnxFile
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.stage import ExportStage
from vitslim.stages.quantize.ptq.stage import PtqStage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit_tiny_distilled_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}),
        ("deit3_small_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}),
        ("beit_base_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}),
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)}),
    ],
)
def test_families_export_in_float_and_int8(name: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    graph = trace_timm(name, {**kwargs, "num_classes": 10})
    images = torch.randn(3, *graph.source.image, generator=torch.Generator().manual_seed(0))
    path = export_onnx(graph, tmp_path / "float.onnx").path
    torch.testing.assert_close(OnnxFile(path)(images), graph.module(images).detach(), rtol=0, atol=1e-4)
    data = load_data(Data(kind="digits", calibration=64), graph.source, seed=0)
    context = StageContext(data, 0, Silent(), lambda name: StageResult(graph), tmp_path)
    quantized = PtqStage(Ptq(method="ptq", calibrate="minmax")).apply(graph, context).graph
    result = ExportStage(Export()).apply(quantized, context)
    assert result.skipped == ()


@pytest.mark.slow
def test_real_deit_tiny(shared_data: Path, tmp_path: Path) -> None:
    graph = trace_timm("deit_tiny_patch16_224", {}, shared_data / "deit_tiny" / "model.safetensors")
    data = load_data(
        Data(kind="imagefolder", root=str(shared_data / "imagenette"), calibration=64), graph.source, seed=0
    )
    context = StageContext(data, 0, Silent(), lambda name: StageResult(graph), tmp_path)
    quantized = PtqStage(Ptq(method="ptq")).apply(graph, context)
    assert quantized.metrics["calibration_sqnr_db"] > 12
    assert quantized.metrics["calibration_agreement"] > 0.9
    result = ExportStage(Export()).apply(quantized.graph, context)
    assert result.metrics["onnx_bytes"] < 6.3e6
    assert result.metrics["parity_agreement"] >= 0.95
    fused = read_kernels(tmp_path / "model.onnx", "the file").counts
    assert (fused["MatMulIntegerToFloat"], fused["QGemm"]) == (49, 1)
