"""Export profiles are values: one more of them is one more kind of file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.recipe import validate
from vitslim.recipe.formats.profiles import FP16, PORTABLE, PROFILES, Profile
from vitslim.recipe.stages import Export, Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.export.stage import MODEL_FILE, ExportStage
from vitslim.stages.quantize.ptq.stage import PtqStage

TOY = Profile("toy", "unsigned activations and MatMul", unsigned_activations=True, weights_at_load=True)


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph)


def test_a_new_profile_writes_files_of_its_own_form(
    tiny_graph: ModelGraph, context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROFILES, TOY.name, TOY)
    graph = PtqStage(Ptq()).apply(tiny_graph, context).graph
    found = {}
    for name in ("toy", "portable", "ort-cpu"):
        result = ExportStage(Export(profile=name)).apply(graph, context)
        assert result.metrics["parity_agreement"] > 0.9
        model = onnx.load(context.workdir / MODEL_FILE)
        types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        zero_points = {types[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
        found[name] = (zero_points, sum(node.op_type == "Gemm" for node in model.graph.node))
    unsigned, signed = onnx.TensorProto.UINT8, onnx.TensorProto.INT8
    assert found["portable"][0] == {signed} and found["toy"][0] == found["ort-cpu"][0] == {unsigned}
    assert found["toy"][1] == found["portable"][1] < found["ort-cpu"][1]


@pytest.mark.slow
@pytest.mark.usefixtures("one_export")
def test_a_recipe_with_a_new_profile_ends_in_a_report(
    tiny_kwargs: dict[str, Any], run_recipe: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROFILES, TOY.name, TOY)
    document = {
        "name": "toy-profile",
        "model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs},
        "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
        "stages": [{"quantize": {"rounding": "nearest"}}, {"export": {"profile": "toy"}}],
        "report": {"backends": ["sim:systolic"], "batches": [1]},
    }  # fmt: skip
    report = run_recipe(validate(document), tmp_path / "out").report
    assert report.stages[-1].metrics["parity_agreement"] > 0.9
    types = {t.data_type for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.UINT8 in types


def test_names_are_keys() -> None:
    assert all(profile.name == name for name, profile in PROFILES.items())


@pytest.mark.parametrize(
    ("keys", "missing", "message"),
    [
        ({}, {"quantized": False}, "floats only"),
        ({"attention": True}, {"integer_attention": False}, "unsigned"),
        ({"bits": 4, "group_size": 16}, {"integer_group_scales": False}, "group-wise integer scales"),
    ],
)
def test_a_profile_refuses_quantizers_that_it_has_no_form_for(
    keys: dict[str, object],
    missing: dict[str, bool],
    message: str,
    tiny_graph: ModelGraph,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after = PtqStage(Ptq(**keys)).estimate(sketch(tiny_graph))  # type: ignore[arg-type]
    everything = replace(PORTABLE, integer_attention=True, integer_group_scales=True)
    monkeypatch.setitem(PROFILES, "portable", everything)
    assert ExportStage(Export()).requires(after) == []
    monkeypatch.setitem(PROFILES, "portable", replace(everything, **missing))
    (problem,) = ExportStage(Export()).requires(after)
    assert problem.where == "profile" and message in problem.message
    assert "`profile: ort-cpu`" in problem.hint and FP16.name not in problem.hint


def test_a_float_model_suits_every_profile(tiny_graph: ModelGraph) -> None:
    for name in PROFILES:
        assert ExportStage(Export(profile=name)).requires(sketch(tiny_graph)) == []
