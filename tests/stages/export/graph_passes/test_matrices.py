"""Quantized linear layers on matrices compute the same as before, with few Reshape nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from vitslim.graph.edits.divide_tokens import divided_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import draw_weights
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.export.check import OnnxFile
from vitslim.stages.export.graph_passes.matrices import flatten_to_matrices
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.quantize.ptq.stage import PtqStage

aten = torch.ops.aten
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN: dict[str, Any] = {"img_size": 64, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


@pytest.fixture
def quantize(digits_context: Callable[..., StageContext]) -> Callable[..., ModelGraph]:
    def build(model: str, keys: dict[str, Any], **ptq: Any) -> ModelGraph:
        torch.manual_seed(0)
        graph = trace_timm(model, keys | {"num_classes": 10})
        draw_weights(graph.module, torch.Generator().manual_seed(0))
        return PtqStage(Ptq(**ptq)).apply(graph, digits_context(graph, calibration=20)).graph

    return build


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("vit_tiny_patch16_224", VIT),
        ("vit_tiny_patch16_224", VIT | {"class_token": False, "global_pool": "avg"}),
        ("vit_medium_patch16_rope_reg1_gap_256", VIT),
        pytest.param("swin_tiny_patch4_window7_224", SWIN, marks=pytest.mark.slow),
        pytest.param("mixer_s32_224", {"img_size": 64}, marks=pytest.mark.slow),
    ],
)
def test_the_graph_on_matrices_computes_the_same(quantize: Callable[..., ModelGraph], model: str, keys: Any) -> None:
    graph = quantize(model, keys)
    flat = graph.copy()
    flatten_to_matrices(flat)
    for batch in (1, 3):
        images = torch.rand(batch, *graph.source.image)
        with torch.no_grad():
            torch.testing.assert_close(flat.module(images), graph.module(images), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scaling", ["per-channel", "per-token"])
def test_few_reshapes_are_left(
    quantize: Callable[..., ModelGraph], tmp_path: Path, scaling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitslim.stages.quantize.smoothing.places.WORTH_A_DIVISION", float("inf"))
    found = {}
    for depth in (2, 3):
        graph = quantize("vit_tiny_patch16_224", VIT | {"depth": depth}, activation_scaling=scaling)
        assert len(divided_layers(graph)) == (depth if scaling == "per-token" else 0)
        export_onnx(graph, tmp_path / "model.onnx", ORT_CPU)
        found[depth] = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    # Of queries, keys and values, and of the output of attention.
    assert found[3]["Reshape"] - found[2]["Reshape"] == 4
    images = torch.rand(3, *graph.source.image)
    with torch.no_grad():
        expected = graph.module(images)
    torch.testing.assert_close(OnnxFile(tmp_path / "model.onnx")(images), expected, rtol=0.05, atol=0.05)


def test_a_tensor_that_other_operators_read_keeps_its_shape(quantize: Callable[..., ModelGraph]) -> None:
    graph = quantize("vit_tiny_patch16_224", VIT)
    gelu = next(node for node in graph.module.graph.nodes if node.target is aten.gelu.default)
    (output,) = (node for node in graph.module.graph.nodes if node.op == "output")
    with graph.module.graph.inserting_before(output):
        seen = graph.module.graph.call_function(aten.sum.dim_IntList, (gelu, [1]))
        output.args = ((graph.module.graph.call_function(aten.select.int, (seen, 1, 0)),),)
    graph.module.recompile()
    flat = graph.copy()
    flatten_to_matrices(flat)
    images = torch.rand(3, *graph.source.image)
    with torch.no_grad():
        torch.testing.assert_close(flat.module(images), graph.module(images))


@pytest.mark.parametrize("keys", [{"activations": "float"}, {"activations": "dynamic"}])
def test_layers_without_static_activations_stay_the_same(quantize: Callable[..., ModelGraph], keys: Any) -> None:
    graph = quantize("vit_tiny_patch16_224", VIT, **keys)
    before = [str(node.target) for node in graph.module.graph.nodes]
    flatten_to_matrices(graph)
    assert [str(node.target) for node in graph.module.graph.nodes] == before
