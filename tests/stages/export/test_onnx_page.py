"""vitslim/ONNX.md specifies every key that files have, and no others; other tools can read theirs."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph, ModelSource, Preprocessing
from vitslim.recipe.formats.file_form import FileForm
from vitslim.recipe.formats.layouts import LAYOUTS
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.other_metadata import other_metadata
from vitslim.stages.quantize.ptq.stage import PtqStage

PAGE = Path(__file__).resolve().parents[3] / "vitslim" / "ONNX.md"
BORDER = ("model_info pad_value",)
"""Keys of other tools that only some models have."""


def page_keys(section: str) -> set[str]:
    """Return the keys in the first column of the table of a section."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


@pytest.fixture
def written(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], tmp_path: Path
) -> tuple[dict[str, str], list[set[str]]]:
    """Metadata of a file with token squeezes and quantized attention: of the file, and the keys of its nodes."""
    context = digits_context(tiny_graph, calibration=16)
    squeezed = insert_squeeze(tiny_graph, {"blocks.0": 9}, "etps")
    config = Ptq(rounding="nearest", smooth=False, attention=True)
    graph = PtqStage(config).apply(squeezed, context).graph
    export_onnx(graph, tmp_path / "model.onnx", ORT_CPU, context.data.calibration.class_names, FileForm(opset=17))
    model = onnx.load(tmp_path / "model.onnx")
    nodes = [{prop.key for prop in node.metadata_props} for node in model.graph.node]
    return {prop.key: prop.value for prop in model.metadata_props}, [keys for keys in nodes if keys]


def test_the_page_has_the_keys_that_files_have(written: tuple[dict[str, str], list[set[str]]]) -> None:
    file, nodes = written
    ours = {key for key in file if key.startswith("vitslim.")}
    assert ours == page_keys("Keys of the file")
    assert len(nodes) == 10 and all(keys == page_keys("Keys of a layer") for keys in nodes)
    listed = [{f"vitslim.{key}" for key in layer} for layer in json.loads(file["vitslim.layers"])]
    assert all(keys == page_keys("Keys of a layer") for keys in listed)
    assert file.keys() - ours == page_keys("Keys of other tools").difference(BORDER)


def test_the_page_has_every_layout() -> None:
    assert page_keys("Layouts") == LAYOUTS.keys()


def source(mode: str, **changes: Any) -> ModelSource:
    preprocessing = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9, mode)
    values = {"timm": "vit", "kwargs": {}, "image": (3, 32, 48), "classes": 3, "preprocessing": preprocessing}
    return ModelSource(**(values | changes))


NAMES = ("cat", "sea lion", "it's")


def test_ultralytics_reads_names_size_and_task() -> None:
    """Its loader applies int() to three keys and ast.literal_eval() to three others."""
    found = other_metadata(source("center"), NAMES, FileForm())
    assert ast.literal_eval(found["names"]) == dict(enumerate(NAMES))
    assert ast.literal_eval(found["imgsz"]) == [32, 48]
    assert ast.literal_eval(found["args"]) == {"dynamic": True}
    assert [int(found[key]) for key in ("stride", "batch", "channels")] == [1, 1, 3]
    assert found["task"] == "classify"
    assert ast.literal_eval(other_metadata(source("center"), (), FileForm(batch=4))["names"])[2] == "2"


@pytest.mark.parametrize(
    ("mode", "resize"), [("center", "crop"), ("squash", "standard"), ("border", "fit_to_window_letterbox")]
)
def test_model_api_reads_labels_and_preprocessing(mode: str, resize: str) -> None:
    """Its schema: lists are separated by spaces, numbers are for pixels up to 255, and choices are fixed."""
    found = other_metadata(source(mode), NAMES, FileForm(input_name="image"))
    info = {key.removeprefix("model_info "): value for key, value in found.items() if key.startswith("model_info ")}
    assert info["model_type"] == "Classification" and info["resize_type"] == resize
    assert info["labels"].split() == ["cat", "sea_lion", "it's"]
    assert [float(value) for value in info["mean_values"].split()] == pytest.approx([123.675, 116.28, 103.53])
    assert [float(value) for value in info["scale_values"].split()] == pytest.approx([58.395, 57.12, 57.375])
    assert info["reverse_input_channels"] in {"True", "False"}
    assert info["interpolation_mode"] in {"LINEAR", "CUBIC", "NEAREST"}
    assert info["layout"] == "image:NCHW" and info["multilabel"] == "False"
    assert ("pad_value" in info) == (mode == "border") and 0 <= int(info.get("pad_value", 0)) <= 255


def test_a_model_without_a_classifier_claims_no_task() -> None:
    found = other_metadata(source("center", classes=0, task="features"), (), FileForm())
    assert not {"task", "names", "model_info model_type", "model_info labels"} & found.keys()
    assert "model_info mean_values" in found


def test_several_labels_of_an_image_are_a_task_of_model_api_alone() -> None:
    found = other_metadata(source("center", task="multilabel"), NAMES, FileForm())
    assert found["model_info multilabel"] == "True" and "task" not in found


def test_too_few_names_are_no_labels() -> None:
    found = other_metadata(source("center"), NAMES[:2], FileForm())
    assert "model_info labels" not in found
    assert ast.literal_eval(found["names"]) == {0: "0", 1: "1", 2: "2"}
