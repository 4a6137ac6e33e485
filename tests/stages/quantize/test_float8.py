"""`quantize: {method: ptq, format: fp8}`: 8-bit floats from the operator to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from vitslim.backends.registry import parse_backend
from vitslim.data import load_data
from vitslim.graph.edits.fake_quant import remove_fake_quant
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.float8 import fake_quant_float8
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import sketch
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.progress import Silent
from vitslim.recipe import check_order, validate
from vitslim.recipe.formats.profiles import PROFILES
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Export, Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.check import OnnxFile, check_stored_weights
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.stage import ExportStage
from vitslim.stages.quantize.ptq.stage import PtqStage


@pytest.fixture(scope="module")
def quantized(tiny_session_graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    graph, stage = tiny_session_graph, PtqStage(Ptq(format="fp8"))
    data = load_data(Data(kind="digits", calibration=40), graph.source, seed=0)
    context = StageContext(data, 0, Silent(), lambda _: StageResult(graph), tmp_path_factory.mktemp("work"))
    assert stage.requires(sketch(graph)) == []
    result = stage.apply(graph, context)
    assert stage.ensures(graph, result.graph) == []
    assert sketch(result.graph).cost() == stage.estimate(sketch(graph)).cost()
    return result


@pytest.fixture(scope="module")
def file(quantized: StageResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    export_onnx(quantized.graph, path)
    return path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (448.0, 448.0),
        (1e9, 448.0),
        (-500.0, -448.0),
        (17.0, 16.0),
        (19.0, 20.0),
        (2**-9, 2**-9),
        (2**-11, 0.0),
        (0.0, 0.0),
    ],
)
def test_values_are_rounded_to_four_significant_bits_and_saturate(value: float, expected: float) -> None:
    """E4M3 has three bits of mantissa, a largest value of 448 and a smallest one of 2^-9."""
    assert float(fake_quant_float8(torch.tensor(value), torch.tensor(1.0), None)) == expected
    assert float(fake_quant_float8(torch.tensor(value / 8), torch.tensor(0.125), None)) == expected / 8


def test_channels_have_scales_of_their_own() -> None:
    x = torch.tensor([[1.0, 0.3], [1000.0, 300.0]])
    scale = x.amax(dim=1) / 448
    found = fake_quant_float8(x, scale, 0)
    torch.testing.assert_close(found[1], 1000 * found[0])
    assert torch.equal(found.amax(dim=1), x.amax(dim=1))


def test_the_file_stores_eight_bit_floats_and_gives_the_same_logits(quantized: StageResult, file: Path) -> None:
    graph = quantized.graph
    check_stored_weights(file, graph)
    images = torch.randn(4, *graph.source.image)
    with torch.no_grad():
        expected = graph.module(images)
    torch.testing.assert_close(OnnxFile(file)(images), expected, atol=1e-4, rtol=1e-4)
    save_graph(graph, file.parent)
    with torch.no_grad():
        assert torch.equal(load_graph(file.parent).module(images), expected)
    found = inspect(file, layers=True)
    assert found.violations == ()
    assert all(one.weights == 0 and not one.activations for one in found.differences)
    assert {(one.container, one.granularity) for one in found.contents.layers} == {("FLOAT8E4M3FN", "channel")}
    assert [one.activation_bits for one in found.contents.layers] == [32, *[8] * 9]  # the image stays in float


def test_verify_finds_a_layer_that_is_not_annotated_as_it_is_stored(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    for props in (model.metadata_props, *(node.metadata_props for node in model.graph.node)):
        for prop in props:
            prop.value = prop.value.replace('"format": "fp8"', '"format": ""') if "layers" in prop.key else prop.value
            if prop.key == "vitslim.format":
                prop.value = ""
    onnx.save(model, tmp_path / "model.onnx")
    found = {(one.layer, one.claim, one.found) for one in inspect(tmp_path / "model.onnx").violations}
    assert ("head", "integer or float weights", "stored as FLOAT8E4M3FN") in found


def test_a_gpu_without_fp8_runs_them_in_half_precision(file: Path) -> None:
    hopper, ampere = (parse_backend(name).estimate(file, 64) for name in ("sim:h100", "sim:a100"))
    assert hopper.roofline is not None and hopper.roofline.precision == "fp8"
    assert hopper.roofline.peak_tops == pytest.approx(1979, rel=0.001)
    assert ampere.settings["fp8"] == "runs as fp16: a100 has no FP8 instruction"


def test_quantizers_can_be_removed(quantized: StageResult, tiny_graph: ModelGraph) -> None:
    images = torch.randn(2, *tiny_graph.source.image)
    with torch.no_grad():
        torch.testing.assert_close(remove_fake_quant(quantized.graph).module(images), tiny_graph.module(images))


@pytest.mark.parametrize(
    ("keys", "key"),
    [({"bits": 4}, "bits"), ({"attention": True}, "attention"), ({"activations": "dynamic"}, "activations"),
     ({"calibrate": "mse"}, "calibrate"), ({"reduce_range": True}, "reduce_range")],
)  # fmt: skip
def test_keys_without_effect_are_refused(keys: dict[str, Any], key: str) -> None:
    problems = _errors({"format": "fp8", **keys}, "portable")
    assert [(one.where, one.message) for one in problems] == [
        (f"stages.0.quantize.{key}", f"`format: fp8` does not use `{key}`")
    ]


@pytest.mark.parametrize("profile", ["ort-cpu", "fp16"])
def test_a_profile_without_eight_bit_floats_is_refused(quantized: StageResult, profile: str) -> None:
    (problem,) = _errors({"format": "fp8"}, profile)
    assert problem.where == "stages.0.quantize.format" and "`profile: portable`" in problem.hint
    assert not PROFILES[profile].float8
    (found,) = ExportStage(Export(profile=profile)).requires(sketch(quantized.graph))
    assert found.where == "profile"


def _errors(keys: dict[str, Any], profile: str) -> list[Any]:
    document = {
        "name": "test",
        "model": {"timm": "deit_tiny_patch16_224", "checkpoint": "w.safetensors"},
        "data": {"kind": "digits"},
        "stages": [{"quantize": {"method": "ptq", **keys}}, {"export": {"profile": profile}}],
    }
    return check_order(validate(document, partial=True))[0]
