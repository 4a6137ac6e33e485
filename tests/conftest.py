"""Fixtures that several rooms share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from sample_reports import bare_report, full_report  # noqa: F401 - fixtures

import vitslim
from vitslim.data import load_data
from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import GRAPH_FILE
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.run import stage_run
from vitslim.pipeline.run.stored import stage_files
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.progress import Progress, Silent
from vitslim.recipe.schema import Data, Recipe
from vitslim.stages.contract import StageContext, StageResult

ROOT = Path(__file__).resolve().parents[1]
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 10}

torch.set_num_threads(1)  # small models train faster so, and much faster when the cores are shared


# A busy machine must not fail a property test.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the results of checked images out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def run_recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe, Path], Artifact]:
    """`vitslim.run`, which finds the dense model among its finished stages if another test has run it."""
    kept = tmp_path_factory.mktemp("dense")

    def run(recipe: Recipe, out: Path) -> Artifact:
        stages = out.with_name(f"{out.name}.stages")
        shutil.copytree(kept, stages, dirs_exist_ok=True)
        artifact = vitslim.run(recipe, out)
        for dense in stages.glob("00-dense-*"):
            shutil.copytree(dense, kept / dense.name, dirs_exist_ok=True)
        return artifact

    return run


@pytest.fixture
def one_export(monkeypatch: pytest.MonkeyPatch, export_once: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Give each stage of a recipe but export the file of the dense model, for tests that read only the last file.

    The export stage writes its own file: that of the model after the stage before it.
    """
    export_once(monkeypatch)


@pytest.fixture(scope="session")
def export_once() -> Callable[[pytest.MonkeyPatch], None]:
    """Return a function that makes the patch of `one_export`, for fixtures of a wider scope."""
    return _export_once


def _export_once(monkeypatch: pytest.MonkeyPatch) -> None:
    write = stage_files.export_onnx

    def write_once(graph: ModelGraph, path: Path, *form: Any) -> None:
        if stage_run.DENSE in path.parent.name:
            write(graph, path, *form)
        else:
            shutil.copyfile(_dense_folder(path.parent.parent, graph) / path.name, path)

    monkeypatch.setattr(stage_files, "export_onnx", write_once)
    monkeypatch.setattr(stage_run, "file_to_export", lambda *_: None)


def _dense_folder(stages: Path, graph: ModelGraph) -> Path:
    """Return the stored dense model of a graph, among those of several models."""
    source = json.loads(json.dumps(asdict(graph.source)))
    found = (path.parent for path in stages.glob(f"{stage_run.DENSE}-*/{GRAPH_FILE}")
             if json.loads(path.read_text(encoding="utf-8"))["source"] == source)  # fmt: skip
    return next(found)


@pytest.fixture(scope="session")
def tiny_kwargs() -> dict[str, Any]:
    """Arguments that make a two-block ViT of `vit_tiny_patch16_224`: 16 patches, 64 wide, two heads."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tiny_session_graph() -> ModelGraph:
    return trace_timm("vit_tiny_patch16_224", dict(TINY))


@pytest.fixture
def tiny_graph(tiny_session_graph: ModelGraph) -> ModelGraph:
    """A traced two-block ViT with random weights; the test may change it."""
    return tiny_session_graph.copy()


@pytest.fixture
def teacher(tiny_graph: ModelGraph) -> ModelGraph:
    """A graph with other weights than the student: every matrix is rolled by one row."""
    other = tiny_graph.copy()
    with torch.no_grad():
        for weight in other.module.parameters():
            weight.copy_(weight.roll(1, 0) * 1.5)
    return other


@pytest.fixture(scope="session")
def deit_tiny() -> ModelGraph:
    """DeiT-Tiny with random weights; no test may change it."""
    return trace_timm("deit_tiny_patch16_224", {})


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real weights and images; tests that need them are skipped without them."""
    folder = Path(os.environ.get("VITSLIM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "deit_tiny" / "model.safetensors").is_file():
        pytest.skip("real weights and images are not here (set VITSLIM_SHARED_DATA)")
    return folder


@pytest.fixture
def digits_context(tmp_path: Path) -> Callable[..., StageContext]:
    """Return a function that makes the context of a stage with the digits and no earlier stage."""

    def make(graph: ModelGraph, calibration: int = 40, seed: int = 0, progress: Progress | None = None) -> StageContext:
        data = load_data(Data(kind="digits", calibration=calibration), graph.source, seed=0)
        return StageContext(data, seed, progress or Silent(), _unknown, tmp_path)

    return make


def _unknown(name: str) -> StageResult:
    raise StageError(f"no stage {name}")
