"""Models and predictions that a benchmark keeps, so that an interrupted run continues."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import load_file, save_file

from vitslim.data import DataModule, Dataset
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.progress import Silent
from vitslim.recipe.accelerators import Accelerator
from vitslim.stages.contract import Deployment, Stage, StageContext, StageResult
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.training.evaluate import predict
from vitslim.workload.session import OnnxModel

BATCH = 25


def folder_of(root: Path, name: str) -> Path:
    """Return the folder of a row."""
    return root / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def make_model(  # noqa: PLR0913, PLR0917 - independent inputs of a model
    folder: Path,
    source: ModelGraph,
    stages: Sequence[Stage],
    data: DataModule,
    results: Mapping[str, StageResult] | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    deployment: Deployment | None = None,
) -> StageResult:
    """Apply stages to a model, or load the result that an earlier run kept; metrics include `seconds`.

    `results` holds earlier results that a stage may ask for, besides `dense` and `previous`; a stage that trains under
    the approximations of an accelerator takes them from `accelerator`, and one that measures candidates uses
    `deployment`.
    """
    metrics_file = folder / "metrics.json"
    if metrics_file.exists():
        return StageResult(load_graph(folder), metrics=json.loads(metrics_file.read_text("utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    keep, start = folder / "training", perf_counter()
    current, metrics = StageResult(source), {}
    for number, stage in enumerate(stages):
        known = {"dense": StageResult(source), **(results or {}), "previous": current}
        own = keep / str(number)
        context = StageContext(data, seed, Silent(), known.__getitem__, folder, deployment, own, accelerator)
        current = stage.apply(current.graph, context)
        metrics |= current.metrics
    # An interrupted training reports the seconds of all of its parts.
    metrics["seconds"] = max(perf_counter() - start, metrics.get("seconds", 0))
    save_graph(current.graph, folder)
    metrics_file.write_text(json.dumps(metrics), encoding="utf-8")
    shutil.rmtree(keep, ignore_errors=True)
    return StageResult(current.graph, metrics=metrics)


def predictions(folder: Path, graph: ModelGraph, sets: Mapping[str, Dataset]) -> dict[str, torch.Tensor]:
    """Return the logits of a model on each set: of its ONNX file in ONNX Runtime, or kept by an earlier run."""
    file, onnx = folder / "logits.safetensors", folder / "model.onnx"
    if file.exists():
        return load_file(file)
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(graph, onnx)
    model = OnnxModel(onnx)
    forward: Callable[[torch.Tensor], torch.Tensor] = lambda images: torch.from_numpy(model(images.numpy()))  # noqa: E731
    found = {name: predict(forward, images, BATCH, Silent(), "")[0].clone() for name, images in sets.items()}
    save_file(found, file)
    return found
