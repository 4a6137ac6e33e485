"""Accuracy of the stages in torch and of the exported file in ONNX Runtime, on the same images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from vitslim.data import DataModule, Dataset
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Progress
from vitslim.results import Accuracy
from vitslim.training.evaluate import predict
from vitslim.workload.session import OnnxModel

BATCH = 50


def evaluate_graph(
    graph: ModelGraph, data: DataModule, dense: dict[str, torch.Tensor] | None, progress: Progress, label: str
) -> tuple[tuple[Accuracy, ...], dict[str, torch.Tensor]]:
    """Return top-1 accuracy and top-1 agreement with the dense model on every evaluation set, and the predictions.

    dense: predictions of the dense model, by evaluation set; None for the dense model itself.
    """
    return _evaluate(graph.module.eval(), data, dense, progress, label, "torch")


def evaluate_onnx(
    path: Path, data: DataModule, dense: dict[str, torch.Tensor], progress: Progress, label: str
) -> tuple[tuple[Accuracy, ...], dict[str, torch.Tensor]]:
    """Return the same as `evaluate_graph` for an ONNX file in ONNX Runtime."""
    model = OnnxModel(path)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model(images.numpy()))

    return _evaluate(forward, data, dense, progress, label, "onnxruntime")


def _evaluate(
    forward: Callable[[torch.Tensor], torch.Tensor],
    data: DataModule,
    dense: dict[str, torch.Tensor] | None,
    progress: Progress,
    label: str,
    runtime: str,
) -> tuple[tuple[Accuracy, ...], dict[str, torch.Tensor]]:
    accuracies, predictions = [], {}
    for name, dataset in evaluation_sets(data).items():
        logits, labels = predict(forward, dataset, BATCH, progress, f"{label}: accuracy on {name}")
        predicted = logits.argmax(dim=1)
        agreement = None if dense is None else (predicted == dense[name]).float().mean().item()
        top1 = (predicted == labels).float().mean().item()
        accuracies.append(Accuracy(dataset=name, top1=top1, n=len(labels), agreement=agreement, runtime=runtime))
        predictions[name] = predicted
    return tuple(accuracies), predictions


def evaluation_sets(data: DataModule) -> dict[str, Dataset]:
    """Return the data sets `val` and those of `data.also_evaluate`."""
    return {"val": data.val, **data.extra}
