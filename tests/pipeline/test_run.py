"""`run` from recipe to artifact on a two-block ViT and digits: all five stages, reuse, gates, interruption."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
import pytest
import torch
from filelock import FileLock

import vitslim
from vitslim.errors import BackendUnavailableError, InputError, RecipeError, UsageError
from vitslim.graph.saved import load_graph
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.pipeline.run.stored.unchanged import run_digest, unchanged_artifact
from vitslim.progress import Silent
from vitslim.recipe import Locked, load_recipe, read_locked, validate
from vitslim.recipe.schema import Recipe

T = TypeVar("T")
Make = Callable[..., Recipe]
DOCUMENT: dict[str, Any] = {
    "name": "small",
    "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
    "stages": [
        {"prune": {"method": "depgraph", "pruning_ratio": 0.25, "importance": "taylor"}},
        {"token-squeeze": {"method": "etps", "blocks": [0], "keep_rate": 0.5}},
        {"distill": {"teacher": "dense", "train": {"epochs": 1, "images": 64}}},
        {"prune": {"method": "two-four"}},
        {"quantize": {"method": "ptq"}},
        "export",
    ],
    "report": {"backends": ["onnxruntime:cpu", "sim:systolic"], "batches": [1, 4], "seconds": 0.05},
}
NAMES = ["00-dense", "01-prune", "02-token-squeeze", "03-distill", "04-prune", "05-quantize", "06-export"]


@pytest.fixture(scope="module")
def recipe(tiny_kwargs: dict[str, Any]) -> Callable[..., Recipe]:
    """Return a function that makes a recipe of all five kinds of stages; its arguments replace top-level keys."""

    def make(**changes: Any) -> Recipe:
        return validate(DOCUMENT | {"model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs}} | changes, "test")

    return make


@pytest.fixture(scope="module")
def artifact(recipe: Make, run_recipe: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run_recipe(recipe(), tmp_path_factory.mktemp("run") / "small")


@pytest.fixture
def again(artifact: Artifact, tmp_path: Path) -> Path:
    """An output folder with the finished stages of the artifact."""
    shutil.copytree(artifact.folder.with_name("small.stages"), tmp_path / "small.stages")
    return tmp_path / "small"


def test_every_stage_is_in_the_report(artifact: Artifact, recipe: Callable[..., Recipe]) -> None:
    assert artifact.report.model_kwargs == recipe().model.kwargs != {}
    kinds = [stage.kind for stage in artifact.report.stages]
    assert kinds == ["dense", "prune", "token-squeeze", "distill", "prune", "quantize", "export"]
    for stage in artifact.report.stages:
        assert stage.onnx_bytes > 0
        assert stage.accuracies
        assert [m.batch for m in stage.measurements] == [1, 4]
        assert [e.batch for e in stage.estimates] == [1, 4]
    costs = [stage.cost for stage in artifact.report.stages]
    assert costs[1].params < costs[0].params
    assert costs[2].macs < costs[1].macs
    assert costs[5].bops < costs[4].bops < costs[3].bops
    assert costs[4].device_bytes < costs[4].weight_bytes


def test_the_report_has_pictures_of_the_tokens(artifact: Artifact) -> None:
    pictures = artifact.report.token_pictures
    assert len(pictures) == 4
    for picture in pictures:
        (block,) = picture.blocks
        assert (picture.patches, block.block, len(block.kept), len(block.squeezed)) == (16, "blocks.0", 8, 8)
    page = (artifact.folder / "report.html").read_text(encoding="utf-8")
    assert all(picture.image in page for picture in pictures)


def test_artifact_files_match_the_manifest(artifact: Artifact) -> None:
    names = {path.name for path in artifact.folder.iterdir()}
    assert names == {
        "model.onnx", "weights.safetensors", "graph.json", "recipe.lock.yaml", "manifest.json", "report.json",
        "report.html",
    }  # fmt: skip
    loaded = vitslim.load_artifact(artifact.folder)
    assert loaded.report == artifact.report
    assert not list(artifact.folder.parent.glob(".*"))


def test_reported_accuracy_is_that_of_onnx_runtime(recipe: Make, artifact: Artifact) -> None:
    from vitslim.data import batches, load_data

    graph = load_graph(artifact.folder)
    data = load_data(recipe().data, graph.source, recipe().seed)
    session = onnxruntime.InferenceSession(artifact.onnx)
    right, total = 0, 0
    for images, labels in batches(data.val, 16):
        logits = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
        right += int((logits.argmax(axis=1) == labels.numpy()).sum())
        total += len(labels)
    assert artifact.report.final_accuracies[0].metrics["top1"] == pytest.approx(right / total)
    assert artifact.report.final_accuracies[0].runtime == "onnxruntime"


def test_saved_model_is_bit_equal_in_a_fresh_process(artifact: Artifact, tmp_path: Path) -> None:
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    stage = next(artifact.folder.with_name("small.stages").glob("05-quantize-*"))
    expected = load_graph(stage).module(images).detach().numpy()
    program = (
        "import sys, numpy as np, torch; from pathlib import Path; from vitslim.graph.saved import load_graph\n"
        "torch.set_num_threads(2); images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))\n"
        "np.save(sys.argv[2], load_graph(Path(sys.argv[1])).module(images).detach().numpy())"
    )
    subprocess.run([sys.executable, "-c", program, str(artifact.folder), str(tmp_path / "out.npy")], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_second_run_reuses_every_stage(recipe: Make, artifact: Artifact, again: Path) -> None:
    progress = Events()
    report = vitslim.run(recipe(), again, progress=progress).report
    assert all(stage.cached for stage in report.stages)
    ended = [values for event, values in progress.events if event == "stage_ended"]
    assert [values["stage"] for values in ended] == NAMES and all(values["reused"] for values in ended)
    assert ended[3]["metrics"]["loss_last"] > 0 and 0 <= ended[3]["metrics"]["stall_share"] <= 1
    assert (progress.events[0][0], progress.events[-1][0]) == ("run_started", "result")
    assert json.loads(json.dumps(progress.events, allow_nan=False))
    assert [s.accuracies for s in report.stages] == [s.accuracies for s in artifact.report.stages]
    assert report.token_pictures == artifact.report.token_pictures


class Events(Silent):
    """Keeps the events and messages of a run."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def emit(self, event: str, values: Mapping[str, object]) -> None:
        self.events.append((event, values))


def test_a_run_of_which_nothing_has_changed_returns_its_artifact(recipe: Make, artifact: Artifact, again: Path) -> None:
    """The tables of a run are not measured again, unless its files were changed."""
    shutil.copytree(artifact.folder, again)
    events = Events()
    found = vitslim.run(recipe(), again, progress=events)
    assert found.report == artifact.report
    assert [event for event, _ in events.events] == ["run_started", "result"]
    assert events.said == [f"nothing has changed since the run in '{again}'; --fresh runs it again"]
    inputs, stages = run_digest(recipe()), again.with_name("small.stages")
    assert inputs and unchanged_artifact(inputs, again, stages)
    assert not unchanged_artifact(run_digest(recipe(seed=1)) or "", again, stages)
    (again / "model.onnx").write_bytes(b"")
    assert not unchanged_artifact(inputs, again, stages)


def test_a_changed_export_redoes_only_the_export(recipe: Make, artifact: Artifact, again: Path) -> None:
    """The file of the quantized model has the profile of the export stage, and the export stage uses it."""
    stored = again.with_name("small.stages")
    before = {path.name: path.stat().st_mtime_ns for path in stored.glob("0[0-4]-*/weights.safetensors")}
    changed = recipe(stages=[*DOCUMENT["stages"][:-1], {"export": {"profile": "ort-cpu"}}])
    report = vitslim.run(changed, again).report
    assert [stage.cached for stage in report.stages] == [True] * 6 + [False]
    assert {path.name: path.stat().st_mtime_ns for path in stored.glob("0[0-4]-*/weights.safetensors")} == before
    quantized, exported = report.stages[-2:]
    assert quantized.onnx_form == exported.onnx_form != artifact.report.stages[-1].onnx_form
    assert (quantized.onnx_bytes, quantized.measurements) == (exported.onnx_bytes, exported.measurements)
    assert quantized.seconds >= artifact.report.stages[-2].seconds
    (file,) = stored.glob("05-quantize-*/model.onnx")
    assert file.read_bytes() == (again / "model.onnx").read_bytes()


class Stop(Silent):
    """Interrupts a run when a stage begins, as Ctrl-C would."""

    def __init__(self, word: str) -> None:
        self.word = word

    def track(self, items: Iterable[T], label: str, total: int | None = None, images: int = 0) -> Iterator[T]:
        if self.word in label:
            raise KeyboardInterrupt
        return iter(items)


def test_a_changed_stage_reruns_with_all_later_stages_also_after_an_interruption(recipe: Make, again: Path) -> None:
    stages = list(recipe().stages)
    stages[4] = stages[4].model_copy(update={"calibrate": "mse"})
    changed = recipe().model_copy(update={"stages": tuple(stages)})
    stored = again.with_name("small.stages")
    shutil.rmtree(next(stored.glob("04-prune-*")))
    before = set(stored.iterdir())
    with pytest.raises(KeyboardInterrupt):
        vitslim.run(changed, again, progress=Stop("05-quantize"))
    assert not again.exists()
    assert [path.name.rpartition("-")[0] for path in set(stored.glob("[!.]*")) - before] == ["04-prune"]
    report = vitslim.run(changed, again).report
    assert [stage.cached for stage in report.stages] == [True] * 5 + [False] * 2
    kept = sorted(path.name.rpartition("-")[0] for path in stored.glob("[!.]*"))
    assert kept == sorted([*NAMES, *NAMES[5:]])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("stage", [
    {"distill": {"train": {"device": "cuda"}}},
    {"prune": {"method": "depgraph", "group_sparsity": {"train": {"device": "cuda"}}}},
])  # fmt: skip
def test_a_missing_gpu_is_found_before_the_first_stage(recipe: Make, stage: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="no CUDA device"):
        vitslim.run(recipe(stages=[stage, "export"]), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_gates_are_judged_on_the_report(recipe: Make, again: Path) -> None:
    strict = recipe(
        gates={
            "size_ratio_min": 1.1,
            "top1_min": 99.9,
            "macs_ratio_min": 1.0,
            "speedup_min": {"onnxruntime:cpu": 1000},
        },
    )
    gates = {gate.name: gate for gate in vitslim.run(strict, again).report.gates}
    assert gates["size_ratio_min"].passed
    assert gates["macs_ratio_min"].passed
    assert not gates["top1_min"].passed
    assert not gates["speedup_min onnxruntime:cpu"].passed


def test_a_changed_file_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact.folder, copy)
    (copy / "model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="changed after the run"):
        vitslim.load_artifact(copy)


def test_manifest_carries_the_annotation_of_each_layer(artifact: Artifact) -> None:
    manifest = json.loads((artifact.folder / "manifest.json").read_text())
    text = json.dumps(manifest["annotations"])
    assert "blocks.0.mlp.fc1" in text
    assert "2:4" in text


def test_a_lock_file_repeats_its_run_and_reuses_its_stages(artifact: Artifact, again: Path) -> None:
    lock = artifact.folder / "recipe.lock.yaml"
    repeated = vitslim.run(load_recipe(lock), again, locked=read_locked(lock))
    assert all(stage.cached for stage in repeated.report.stages)
    assert (again / "weights.safetensors").read_bytes() == (artifact.folder / "weights.safetensors").read_bytes()


def test_other_versions_or_inputs_than_those_of_the_lock_file_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    lock = artifact.folder / "recipe.lock.yaml"
    inputs = read_locked(lock)
    changed = {"data": "0" * 64, "more": "1"}
    other = Locked(versions=inputs.versions | {"torch": "1.0"}, digests=inputs.digests | changed)
    with pytest.raises(RecipeError) as caught:
        vitslim.run(load_recipe(lock), tmp_path / "out", locked=other)
    assert [problem.where for problem in caught.value.problems] == [
        "locked.versions.torch", "locked.digests.data", "locked.digests.more"]  # fmt: skip
    assert caught.value.problems[0].message == f"got {inputs.versions['torch']}, the locked run had 1.0"
    assert not (tmp_path / "out").exists()


def test_a_second_run_in_the_same_folder_is_refused(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "out.stages").mkdir()
    with FileLock(tmp_path / "out.stages" / ".lock"), pytest.raises(UsageError, match="another run is writing"):
        vitslim.run(recipe(), tmp_path / "out")
