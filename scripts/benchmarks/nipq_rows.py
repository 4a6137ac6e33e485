"""Rows of `scripts/bench nipq`: one for each trained arm, kept in files so that an interrupted run continues."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from kept_model import BATCH, folder_of, make_model
from nipq_arms import CONTRASTS, Arm, Task
from paired_bootstrap import difference
from safetensors.torch import load_file, save_file

from vitslim.data import Dataset
from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.progress import Silent
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.stages.contract import StageResult
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.registry import make_stage
from vitslim.training.evaluate import predict
from vitslim.workload.session import OnnxModel

DIVERGED = "diverged.json"
METRICS = (
    "average_weight_bits", "average_activation_bits", "learned_weight_bits", "learned_activation_bits", "seconds",
    "loss_last", "bops", "size_mb",
)  # fmt: skip


def task_rows(root: Path, task: Task, arms: Mapping[str, Arm], *, in_file: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the rows of all arms of a task, the dense model first; an arm that diverges has a row that says so.

    in_file: judge the exported file in ONNX Runtime instead of the graph.
    """
    sets = {"val": task.data.val, **task.data.extra}
    labels = {name: torch.as_tensor(one.labels) for name, one in sets.items()}
    dense = classes_of(folder_of(root, "dense"), task.dense, sets)
    yield "dense", _scores(dense, dense, labels)
    models: dict[str, ModelGraph] = {}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, arm in arms.items():
        folder = folder_of(root, name)
        result = _model(folder, task, arm, models)
        if result is None:
            yield name, {"diverged": True, **json.loads((folder / DIVERGED).read_text("utf-8"))}
            continue
        models[name] = result.graph
        found[name] = classes_of(folder, result.graph, sets, in_file=in_file)
        cost = sketch(result.graph).cost()
        yield name, _scores(found[name], dense, labels) | {
            "diverged": False, "gbops": cost.bops / 1e9, "weight_mb": cost.weight_bytes / 1e6,
            **{key: result.metrics[key] for key in METRICS if key in result.metrics},
            **_contrasts(found, name, dense, labels)}  # fmt: skip


def _model(folder: Path, task: Task, arm: Arm, models: Mapping[str, ModelGraph]) -> StageResult | None:
    """Return the model of an arm; None if its training diverged, which is recorded."""
    if (folder / DIVERGED).exists():
        return None
    try:
        return make_model(folder, task.dense, [make_stage(arm(task, models))], task.data, seed=task.seed)
    except StageError as error:
        if "training stopped" not in error.message:
            raise
        (folder / DIVERGED).write_text(json.dumps({"error": error.message}), encoding="utf-8")
        return None


def classes_of(
    folder: Path, graph: ModelGraph, sets: Mapping[str, Dataset], *, in_file: bool = False
) -> dict[str, torch.Tensor]:
    """Return the predicted classes of a model on each set, from the earlier run if it kept its logits."""
    file = folder / "logits.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        model: Any = graph.module
        if in_file:
            export_onnx(graph, folder / "model.onnx", ORT_CPU)
            session = OnnxModel(folder / "model.onnx")
            model = lambda images: torch.from_numpy(session(images.numpy()))  # noqa: E731
        logits = {name: predict(model, images, BATCH, Silent(), "")[0].clone() for name, images in sets.items()}
        save_file(logits, file)
    return {name: logits.argmax(dim=1) for name, logits in load_file(file).items()}


def _scores(
    found: Mapping[str, torch.Tensor], dense: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, classes in found.items():
        right, dense_right = (classes == labels[name]).float(), (dense[name] == labels[name]).float()
        same = (classes == dense[name]).float()
        row |= {f"top1_{name}": float(right.mean()), f"agreement_{name}": float(same.mean()),
                f"top1_change_{name}": difference(right, dense_right)}  # fmt: skip
    return row


def _contrasts(
    found: Mapping[str, Mapping[str, torch.Tensor]],
    arm: str,
    dense: Mapping[str, torch.Tensor],
    labels: Mapping[str, torch.Tensor],
) -> dict[str, Any]:
    """Return differences of top-1 and agreement between an arm and those that came before it."""
    row: dict[str, Any] = {}
    for first, second in CONTRASTS:
        if arm in {first, second} and {first, second} <= found.keys():
            for name, correct in labels.items():
                for key, target in (("top1", correct), ("agreement", dense[name])):
                    same = [(found[one][name] == target).float() for one in (first, second)]
                    row[f"{key}_{name}: {first} - {second}"] = difference(same[0], same[1])
    return row
