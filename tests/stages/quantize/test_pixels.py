"""Patch embeddings that read 8-bit pixels, and patch convolutions as matmuls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.graph.edits.fake_quant import activation_scale_name
from vitslim.graph.edits.read_pixels import PIXEL
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import is_op, tensor_of
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import draw_weights
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.recipe.formats.profiles import ORT_CPU, PORTABLE, Profile
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.export.check import OnnxFile, check_stored_weights
from vitslim.stages.export.graph_passes.patch_convolutions import rewrite_patch_convolutions
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.quantize.ptq.stage import PtqStage

aten = torch.ops.aten
PATCHES = "patch_embed.proj.weight"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CONVNEXT: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40), "num_classes": 10}
SWIN: dict[str, Any] = {"img_size": 64, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


def images(count: int, size: int = 32) -> torch.Tensor:
    """Return random 8-bit images, normalized."""
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)) / 255
    return (pixels - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def test_patch_embeddings_of_8_bit_activations_read_pixels(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    for keys, bits in (
        ({}, 8),
        ({"activations": "dynamic"}, 8),
        ({"activation_bits": 6}, 32),
        ({"activations": "float"}, 32),
    ):
        stage = PtqStage(Ptq(**keys))
        result = stage.apply(tiny_graph, digits_context(tiny_graph))
        assert sketch(result.graph).bits[PATCHES].activation == bits
        assert stage.estimate(sketch(tiny_graph)).bits == sketch(result.graph).bits
        (note,) = (note for note in result.changes if note.layer == PATCHES)
        if bits == 8:
            assert float(tensor_of(result.graph.module, activation_scale_name(PATCHES))) == pytest.approx(PIXEL)
            assert note.result.endswith("INT8 activations") and note.reason == "reads the 8-bit pixels"
        elif "activations" not in keys:
            assert note.reason == "reads the image, which stays in float"


@pytest.mark.parametrize(
    ("model", "keys", "profiles"),
    [
        ("vit_tiny_patch16_224", VIT, [PORTABLE, ORT_CPU]),
        pytest.param("swin_tiny_patch4_window7_224", SWIN, [PORTABLE, ORT_CPU], marks=pytest.mark.slow),
        pytest.param("convnext_atto", CONVNEXT, [PORTABLE, ORT_CPU], marks=pytest.mark.slow),
    ],
)
def test_patch_embeddings_become_matmuls(
    model: str, keys: Any, profiles: list[Profile], digits_context: Callable[..., StageContext], tmp_path: Path
) -> None:
    graph = trace_timm(model, keys)
    draw_weights(graph.module, torch.Generator().manual_seed(0))
    quantized = PtqStage(Ptq()).apply(graph, digits_context(graph, calibration=20)).graph
    rows = quantized.copy()
    rewrite_patch_convolutions(rows)
    before, after = (sum(is_op(n, aten.conv2d.default) for n in g.module.graph.nodes) for g in (quantized, rows))
    assert after < before
    batch = images(3, graph.source.image[1])
    with torch.no_grad():
        expected = quantized.module(batch)
        # A value halfway between two integers may be rounded to either.
        assert (rows.module(batch) - expected).square().mean() < 1e-4 * expected.square().mean()
    for profile in profiles:
        path = tmp_path / f"{profile.name}.onnx"
        export_onnx(quantized, path, profile)
        check_stored_weights(path, quantized)
        assert not inspect(path).violations
        found = OnnxFile(path)(batch)
        assert (found - expected).square().mean() < 1e-2 * expected.square().mean()


@pytest.mark.slow
def test_patches_that_do_not_cover_the_image_stay_a_convolution(digits_context: Callable[..., StageContext]) -> None:
    graph = trace_timm("swin_tiny_patch4_window7_224", SWIN)
    quantized = PtqStage(Ptq()).apply(graph, digits_context(graph, calibration=8)).graph
    found = {}
    for side in (64, 66):
        one = quantized.copy()
        one.source = replace(one.source, image=(3, side, side))
        for node in list(one.module.graph.nodes):
            if is_op(node, aten.permute.default) and is_op(node.args[0], aten.conv2d.default):
                output = next(n for n in one.module.graph.nodes if n.op == "output")
                output.args = ((node,),)
                break
        one.module.graph.eliminate_dead_code()
        rewrite_patch_convolutions(one)
        found[side] = sum(is_op(node, aten.conv2d.default) for node in one.module.graph.nodes)
    assert found == {64: 0, 66: 1}
