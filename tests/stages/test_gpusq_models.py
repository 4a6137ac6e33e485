"""Whole models: 2:4 in the stored integers of every layer, and their bytes on a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitslim.data import load_data
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.progress import Silent
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Ptq, TwoFour
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.quantize.ptq.stage import PtqStage

MODELS = ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224", "swin_tiny_patch4_window7_224"]
FLOAT_BYTES = 4


@pytest.mark.parametrize(
    ("bits", "pattern", "smaller"), [pytest.param(8, "2:4", 6.4, marks=pytest.mark.slow), (4, "2:4-pairs", 12.8)]
)
@pytest.mark.parametrize(
    ("model", "kwargs"),
    [(MODELS[0], {"depth": 2}), *(pytest.param(name, {}, id=name, marks=pytest.mark.slow) for name in MODELS)],
)
def test_every_layer_but_the_classifier_is_sparse_in_the_integers(
    model: str, kwargs: dict[str, int], bits: int, pattern: str, smaller: float, tmp_path: Path
) -> None:
    graph = trace_timm(model, kwargs)
    data = load_data(Data(kind="digits", calibration=2), graph.source, 0)
    context = StageContext(data, 0, Silent(), lambda _: StageResult(graph), tmp_path)
    sparse = TwoFourStage(TwoFour(method="two-four", pattern=pattern)).apply(graph, context)
    assert not sparse.skipped
    keys = {"rounding": "nearest", "bias_correction": False, "smooth": False}
    small = PtqStage(Ptq(bits=bits, activation_bits=bits, **keys)).apply(sparse.graph, context).graph
    path = tmp_path / "model.onnx"
    export_onnx(small, path, ORT_CPU)
    found = inspect(path)
    assert not found.violations
    dense = [layer for layer in found.contents.layers if layer.pattern != pattern]
    assert [layer.name.partition(".")[0] for layer in dense] == ["head"]
    masked = [layer for layer in found.contents.layers if layer not in dense]
    assert {"patch_embed.proj"} < {layer.name for layer in masked}
    read = sum(layer.device_bytes for layer in masked)
    assert FLOAT_BYTES * sum(layer.weights for layer in masked) / read == pytest.approx(smaller, rel=1e-12)
    cost = sketch(small).cost()
    assert read < cost.device_bytes < cost.weight_bytes
