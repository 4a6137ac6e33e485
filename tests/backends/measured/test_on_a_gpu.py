"""GPU kernels against the graph; skipped without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vitslim.backends.measured.torch_cuda import CudaModel
from vitslim.backends.registry import Measured
from vitslim.data.digits import MEAN, STD
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import save_graph
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.stages import Ptq, TwoFour
from vitslim.stages.contract import StageContext
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.training.evaluate import sqnr_db

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def dense() -> ModelGraph:
    """Two blocks of DeiT-S's width, which all kernels take."""
    return trace_timm("deit_small_patch16_224", {"depth": 2, "img_size": 64})


@pytest.mark.parametrize(("sparse", "bits", "kernel"), [
    (False, 16, "float"), (True, 16, "float 2:4"), (False, 8, "int8"), (True, 8, "int8 2:4"),
])  # fmt: skip
def test_kernels_match_the_graph(
    dense: ModelGraph, digits_context: Callable[..., StageContext], tmp_path: Path, sparse: bool, bits: int, kernel: str
) -> None:
    graph = dense
    if sparse:
        graph = TwoFourStage(TwoFour(method="two-four")).apply(graph, digits_context(dense)).graph
    if bits == 8:
        stage = PtqStage(Ptq(symmetric=True, rounding="nearest", bias_correction=False))
        graph = stage.apply(graph, digits_context(dense)).graph
    save_graph(graph, tmp_path)
    model = CudaModel(tmp_path / "model.onnx", 1)
    assert model.kernels["blocks.1.mlp.fc1.weight"] == kernel
    for batch in (1, 5, 1):
        # 8-bit pixels, because the quantized graph reads integers.
        pixels = np.random.default_rng(batch).integers(0, 256, model.input_shape(batch)) / 255
        images = ((pixels - MEAN) / STD).astype(np.float32)
        with torch.no_grad():
            expected = graph.module(torch.from_numpy(images))
        # Integers differ where an FP16 input lies between two of them.
        assert sqnr_db(expected, torch.from_numpy(model(images))) > 25


def test_latencies_are_measured(dense: ModelGraph, tmp_path: Path) -> None:
    save_graph(dense, tmp_path)
    found = Measured("torch:cuda").measure({"one": tmp_path / "model.onnx"}, "one", (1, 8), (1,), 0.1, Silent())
    assert [m.batch for m in found["one"]] == [1, 8]
    assert all(m.median_ms > 0 for m in found["one"])
