"""Layouts of the folder of a run: their files, the models that they refuse, and the loaders that read them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from vitslim.data import load_data
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.pipeline.run.stored.artifact import Artifact, load_artifact
from vitslim.recipe import validate
from vitslim.recipe.formats.file_form import FileForm
from vitslim.recipe.formats.layouts import LAYOUTS as NAMES
from vitslim.recipe.schema import Data
from vitslim.stages.export.layouts import LAYOUTS, ExportedModel
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.workload.session import OnnxModel

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def exported(tiny_session_graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    path = tmp_path_factory.mktemp("layouts") / "model.onnx"
    export_onnx(tiny_session_graph, path, class_names=LABELS)
    return ExportedModel("my-model", path, tiny_session_graph, LABELS, (1, 8))


def preprocessed(graph: ModelGraph, **changes: Any) -> ModelGraph:
    source = graph.source
    return replace(graph, source=replace(source, preprocessing=replace(source.preprocessing, **changes)))


def test_every_layout_has_files() -> None:
    assert LAYOUTS.keys() == NAMES.keys()


def test_hf_describes_the_model(exported: ExportedModel) -> None:
    files = LAYOUTS["hf"].files(exported)
    config, preprocessor = (json.loads(files.texts[name]) for name in ("config.json", "preprocessor_config.json"))
    assert files.model == "onnx/model.onnx"
    assert "one pixel off" in files.notes[0]  # 35 - 32 is odd
    assert config["model_type"] == "vit" and config["architectures"] == ["ViTForImageClassification"]
    sizes = {"image_size": 32, "patch_size": 8, "num_channels": 3, "hidden_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "intermediate_size": 256}  # fmt: skip
    assert sizes.items() <= config.items() and config["problem_type"] == "single_label_classification"
    assert config["id2label"]["9"] == "nine" and config["label2id"]["nine"] == 9
    assert preprocessor["image_processor_type"] == "BitImageProcessor"
    assert preprocessor["size"] == {"shortest_edge": 35}  # 32 / 0.9, rounded down
    assert preprocessor["resample"] == Image.Resampling.BICUBIC
    assert preprocessor["image_mean"] == [0.5, 0.5, 0.5]


def test_hf_names_quantized_models_deit_and_squashed_images(exported: ExportedModel) -> None:
    graph = exported.graph
    sites, scales = [FakeQuantSite("head.weight", 8, 8)], {}
    quantized = insert_fake_quant(preprocessed(graph, crop_mode="squash", crop_pct=0.5), sites, scales)
    quantized = replace(quantized, source=replace(quantized.source, timm="deit_tiny_patch16_224"))
    files = LAYOUTS["hf"].files(replace(exported, graph=quantized, class_names=LABELS[:3]))
    config, preprocessor = (json.loads(files.texts[name]) for name in ("config.json", "preprocessor_config.json"))
    assert files.model == "onnx/model_quantized.onnx" and files.notes == ()
    assert config["model_type"] == "deit" and config["architectures"] == ["DeiTForImageClassification"]
    assert config["id2label"]["9"] == "LABEL_9"  # three names cannot label ten outputs
    assert preprocessor["size"] == {"height": 64, "width": 64}


def test_hf_refuses_models_that_vit_cannot_describe(
    tiny_session_graph: ModelGraph, tiny_kwargs: dict[str, Any]
) -> None:
    obstacles = LAYOUTS["hf"].obstacles
    assert list(obstacles(tiny_session_graph)) == []
    swin = trace_timm(
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "depths": (1, 1), "embed_dim": 16, "num_heads": (1, 1), "num_classes": 4},
    )
    ((message, hint),) = obstacles(swin)
    assert "cannot describe 'swin_tiny" in message and "within windows" in message and "`layout: plain`" in hint
    ((message, _),) = obstacles(preprocessed(tiny_session_graph, crop_mode="border"))
    assert "border" in message
    headless = replace(tiny_session_graph, source=replace(tiny_session_graph.source, task="features"))
    assert "no classifier" in next(obstacles(headless))[0]
    ((message, _),) = obstacles(trace_timm("vit_tiny_patch16_224", {**tiny_kwargs, "in_chans": 1}))
    assert "takes 1" in message


SCHEMA = {
    "name": "string", "platform": "string", "backend": "string", "max_batch_size": "integer", "input": "tensor",
    "output": "tensor", "dynamic_batching": "message",
}  # fmt: skip
"""Fields of ModelConfig in Triton's model_config.proto that a configuration of ONNX Runtime has, and their kinds."""
TENSOR = {"name": "string", "data_type": "enum", "dims": "integers", "label_filename": "string"}
KINDS = {"string": r'"[^"]*"', "integer": r"-?\d+", "enum": r"TYPE_[A-Z0-9]+", "integers": r"\[(-?\d+(, )?)*\]"}


def parse_pbtxt(text: str) -> dict[str, Any]:
    """Return the fields of a protobuf text; every field must be in the schema and have a value of its kind."""
    found: dict[str, Any] = {}
    for name, inner, value in re.findall(r"^(\w+)(?: \{((?:.|\n)*?)\}|: (.*))$", text, re.M):
        if SCHEMA[name] == "tensor":
            fields = dict(line.strip().split(": ", 1) for line in inner.strip().splitlines())
            assert all(re.fullmatch(KINDS[TENSOR[key]], one) for key, one in fields.items())
            found[name] = fields
        else:
            assert SCHEMA[name] == "message" or re.fullmatch(KINDS[SCHEMA[name]], value)
            found[name] = value
    return found


def test_triton_describes_the_tensors_of_the_file(exported: ExportedModel) -> None:
    files = LAYOUTS["triton"].files(exported)
    assert files.model == "my-model/1/model.onnx"
    assert files.texts["my-model/labels.txt"].splitlines() == list(LABELS)
    found = parse_pbtxt(files.texts["my-model/config.pbtxt"])
    assert found["name"] == '"my-model"' and found["backend"] == '"onnxruntime"'
    assert found["max_batch_size"] == "8" and "dynamic_batching" in found
    tensor = {"name": '"pixel_values"', "data_type": "TYPE_FP32", "dims": "[3, 32, 32]"}
    assert found["input"] == tensor
    assert found["output"] == {"name": '"logits"', "data_type": "TYPE_FP32", "dims": "[10]",
                               "label_filename": '"labels.txt"'}  # fmt: skip


def test_triton_keeps_a_fixed_batch_as_a_dimension(exported: ExportedModel, tmp_path: Path) -> None:
    model = onnx.load(exported.path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "model.onnx")
    files = LAYOUTS["triton"].files(replace(exported, path=tmp_path / "model.onnx", class_names=()))
    found = parse_pbtxt(files.texts["my-model/config.pbtxt"])
    assert found["max_batch_size"] == "0" and "dynamic_batching" not in found
    assert found["input"]["dims"] == "[4, 3, 32, 32]" and found["output"]["dims"] == "[4, 10]"
    assert files.texts.keys() == {"my-model/config.pbtxt"}


def test_a_fixed_batch_runs_any_number_of_images(tiny_session_graph: ModelGraph, tmp_path: Path) -> None:
    export_onnx(tiny_session_graph, tmp_path / "model.onnx", form=FileForm("image", "scores", 4, 23))
    model = onnx.load(tmp_path / "model.onnx")
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "scores"]
    assert not {"Shape", "Expand"} & {node.op_type for node in model.graph.node}
    images = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tiny_session_graph.module(images).numpy()
    run = OnnxModel(tmp_path / "model.onnx")
    np.testing.assert_allclose(run(images.numpy()), expected, atol=1e-5)
    np.testing.assert_allclose(run(images[:2].numpy()), expected[:2], atol=1e-5)


@pytest.mark.usefixtures("one_export")
def test_a_run_arranges_its_folder(
    tiny_kwargs: dict[str, Any], run_recipe: Callable[..., Artifact], tmp_path: Path
) -> None:
    document = {
        "name": "arranged",
        "model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs},
        "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
        "stages": [{"export": {"layout": "hf"}}],
        "report": {"backends": ["sim:systolic"]},
    }
    run_recipe(validate(document), tmp_path / "out")
    artifact = load_artifact(tmp_path / "out")
    assert artifact.onnx == tmp_path / "out" / "onnx" / "model.onnx"
    assert artifact.report.model_file == artifact.manifest["model_file"] == "onnx/model.onnx"
    expected = {"onnx/model.onnx", "config.json", "preprocessor_config.json", "graph.json", "weights.safetensors"}
    assert expected <= artifact.manifest["files"].keys() and expected <= artifact.report.files.keys()
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert inspect(tmp_path / "out").path == artifact.onnx


def test_optimum_loads_the_hf_layout_with_equal_logits(exported: ExportedModel, tmp_path: Path) -> None:
    runtime = pytest.importorskip(
        "optimum.onnxruntime", reason="needs Optimum: pip install 'optimum-onnx[onnxruntime]'"
    )
    transformers = pytest.importorskip("transformers")
    exported = replace(exported, graph=preprocessed(exported.graph, crop_pct=0.8))
    files = LAYOUTS["hf"].files(exported)
    (tmp_path / "onnx").mkdir()
    (tmp_path / files.model).write_bytes(exported.path.read_bytes())
    for name, text in files.texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    model = runtime.ORTModelForImageClassification.from_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for split in ("train", "val"):
        (tmp_path / "images" / split / "zero").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "images" / split / "zero" / "image.png")
    config = Data(kind="imagefolder", root=str(tmp_path / "images"), calibration=1, classes=LABELS)
    image = load_data(config, exported.graph.source, 0).val[0][0][None]
    found = processor(Image.fromarray(pixels), return_tensors="pt")
    np.testing.assert_allclose(found["pixel_values"].numpy(), image.numpy(), atol=0.02)
    logits = model(**found).logits.numpy()
    np.testing.assert_array_equal(logits, OnnxModel(exported.path)(found["pixel_values"].numpy()))
    assert model.config.id2label == dict(enumerate(LABELS))
