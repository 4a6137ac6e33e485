"""Runs of feature extractors, backbones and multi-label models: their metrics, gates, files and reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from vitslim.data import Dataset, load_data
from vitslim.graph.saved import load_graph
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.recipe import validate
from vitslim.recipe.schema import Data, Recipe

BACKBONE = {"features_only": True, "depths": [1, 1, 1, 1], "dims": [16, 32, 32, 32], "out_indices": [0, 1]}
STAGES: list[Any] = [
    {"prune": {"method": "depgraph", "pruning_ratio": 0.5, "importance": "taylor", "batches": 1, "batch": 8}},
    {"distill": {"train": {"epochs": 1, "images": 16, "batch": 8}}},
    {"quantize": {"method": "ptq"}},
    "export",
]
DATA = {"kind": "digits", "calibration": 24, "eval_images": 30}
Floats = npt.NDArray[np.float32]


def recipe(model: Any, gates: Any, stages: Any = STAGES, **data: Any) -> Recipe:
    return validate(
        {
            "name": "task",
            "model": model,
            "data": DATA | data,
            "stages": stages,
            "report": {"backends": []},
            "gates": gates,
        },
        "test",
    )


def embeddings(path: Path, dataset: Dataset) -> Floats:
    """Outputs of an ONNX file, scaled to unit length."""
    session = onnxruntime.InferenceSession(path)
    images = np.concatenate([batch.numpy() for batch, _ in dataset.batches(8)])
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    return found / np.linalg.norm(found, axis=1, keepdims=True)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def features(
    tiny_kwargs: dict[str, Any],
    run_recipe: Callable[..., Artifact],
    tmp_path_factory: pytest.TempPathFactory,
    export_once: Callable[[pytest.MonkeyPatch], None],
) -> Artifact:
    model = {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs | {"num_classes": 0}}
    gates = {"cosine_min": 0.5, "neighbor_agreement_min": 99.9}
    with pytest.MonkeyPatch.context() as patch:
        export_once(patch)
        return run_recipe(recipe(model, gates), tmp_path_factory.mktemp("features") / "out")


def dense_folder(artifact: Artifact) -> Path:
    """The folder of the dense model of a run."""
    dense = artifact.report.stages[0]
    return artifact.folder.with_name(f"{artifact.folder.name}.stages") / f"{dense.name}-{dense.key}"


@pytest.mark.slow
def test_reported_similarity_is_that_of_the_files(features: Artifact) -> None:
    dense = dense_folder(features)
    data = load_data(Data(**DATA), load_graph(dense).source, 0)
    sets = {"val": data.val, "calibration": data.calibration}
    files = (dense / "model.onnx", features.onnx)
    before, after = ({name: embeddings(file, part) for name, part in sets.items()} for file in files)
    metrics = features.report.final_accuracies[0].metrics
    assert metrics["cosine"] == pytest.approx(float((before["val"] * after["val"]).sum(axis=1).mean()), abs=1e-5)
    neighbors = [(found["val"] @ found["calibration"].T).argmax(axis=1) for found in (before, after)]
    same = float((neighbors[0] == neighbors[1]).mean())
    assert metrics["neighbor_agreement"] == pytest.approx(same)
    votes = np.zeros((len(data.val), 10))
    similar = after["val"].astype(float) @ after["calibration"].T
    for row, (values, places) in enumerate(zip(similar, np.argsort(-similar, axis=1), strict=True)):
        for place in places[:20]:
            votes[row, data.calibration.labels[place]] += np.exp(values[place] / 0.07)
    assert metrics["knn_top1"] == pytest.approx(float((votes.argmax(axis=1) == np.asarray(data.val.labels)).mean()))


def test_a_feature_extractor_has_gates_and_a_report_of_its_own(features: Artifact) -> None:
    report = features.report
    assert report.task == "features"
    assert [stage.kind for stage in report.stages] == ["dense", "prune", "distill", "quantize", "export"]
    assert report.stages[0].accuracies[0].metrics.keys() == {"knn_top1"}
    assert report.stages[2].metrics["loss_last"] > 0
    gates = {gate.name: gate for gate in report.gates}
    assert gates["cosine_min"].passed
    assert not gates["neighbor_agreement_min"].passed
    assert gates["neighbor_agreement_min"].value == 100 * report.final_accuracies[0].metrics["neighbor_agreement"]
    assert {"parity_neighbor_agreement", "parity_sqnr_db"} < report.parity.keys()
    assert "top-1 agreement" not in (features.folder / "report.html").read_text(encoding="utf-8")


def test_the_file_of_a_feature_extractor_says_so(features: Artifact) -> None:
    model = onnx.load(features.onnx)
    assert [output.name for output in model.graph.output] == ["features"]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["vitslim.task"] == "features"
    assert "vitslim.class_names" not in metadata
    lock = (features.folder / "recipe.lock.yaml").read_text(encoding="utf-8")
    assert "task: features" in lock


@pytest.mark.slow
@pytest.mark.usefixtures("one_export")
def test_a_backbone_keeps_all_outputs(run_recipe: Callable[..., Artifact], tmp_path: Path) -> None:
    stages = [STAGES[0], STAGES[2], STAGES[3]]
    found = run_recipe(
        recipe(
            {"timm": "convnext_atto", "kwargs": BACKBONE}, {"cosine_min": 0.9}, stages, calibration=8, eval_images=10
        ),
        tmp_path / "maps",
    )
    session = onnxruntime.InferenceSession(found.onnx)
    assert [output.name for output in session.get_outputs()] == ["features_0", "features_1"]
    graph = load_graph(found.folder)
    data = load_data(Data(**DATA | {"eval_images": 10}), graph.source, 0)
    ((images, _),) = data.val.batches(10)
    dense = load_graph(dense_folder(found))
    metrics = found.report.final_accuracies[0].metrics
    values = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for name, value, expected in zip(("features_0", "features_1"), values, dense.module(images), strict=True):
        reference = expected.detach().numpy().astype(float)
        sqnr = 10 * np.log10((reference**2).sum() / ((reference - value) ** 2).sum())
        assert metrics[f"sqnr_db.{name}"] == pytest.approx(sqnr, rel=1e-4)
    assert metrics["cosine"] > 0.9
    assert all(gate.passed for gate in found.report.gates)
    assert "SQNR features_1" in (found.folder / "report.html").read_text(encoding="utf-8")


def table_of_several_labels(folder: Path) -> Path:
    """48 training and 30 validation images with a class, and every other one with a second class."""
    generator, rows = np.random.default_rng(0), ["path,labels,split"]
    for number in range(78):
        pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        names = f"c{number % 10};c{(number + 1) % 10}" if number % 2 else f"c{number % 10}"
        rows.append(f"{number}.png,{names},{'train' if number < 48 else 'val'}")
    (folder / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder / "table.csv"


@pytest.mark.usefixtures("one_export")
def test_a_table_of_several_labels_is_scored_by_mean_average_precision(
    tiny_kwargs: dict[str, Any], run_recipe: Callable[..., Artifact], tmp_path: Path
) -> None:
    model = {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs, "task": "multilabel"}
    table = {"kind": "imagefolder", "root": str(table_of_several_labels(tmp_path))}
    found = run_recipe(recipe(model, {"map_min": 1.0}, **table), tmp_path / "labels")
    graph = load_graph(found.folder)
    val = load_data(Data(**DATA | table), graph.source, 0).val
    session = onnxruntime.InferenceSession(found.onnx)
    ((images, labels),) = val.batches(100)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    expected = np.mean([average_precision_score(labels[:, one], logits[:, one]) for one in range(10)])
    metrics = found.report.final_accuracies[0].metrics
    assert metrics["map"] == pytest.approx(float(expected))
    (gate,) = found.report.gates
    assert (gate.name, gate.passed) == ("map_min", True)
    assert gate.value == pytest.approx(100 * metrics["map"])
    assert 0 <= metrics["label_agreement"] <= 1
    stored = json.loads((found.folder / "report.json").read_text(encoding="utf-8"))
    assert stored["task"] == "multilabel"
