"""Metrics of the ONNX file of each stage in ONNX Runtime, on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vitslim.data import DataModule, Dataset
from vitslim.graph.model_graph import ModelSource
from vitslim.graph.outputs import Outputs, output_list
from vitslim.progress import Progress
from vitslim.results import Accuracy
from vitslim.training.evaluate import predict, run_over
from vitslim.training.tasks import MapComparison, Predicted, task_for
from vitslim.workload.session import OnnxModel

BATCH = 50
CALIBRATION = "calibration"
"""Name of the calibration images among the predictions; no evaluation set has it."""

Predictions = dict[str, torch.Tensor]
"""Evaluation set to what the task stores of the outputs: one row for each image, such as the predicted class. Empty for
a backbone, whose maps are compared batch by batch."""
Model = Callable[[torch.Tensor], Outputs]


@dataclass(frozen=True)
class Reference:
    """The dense model, with which others are compared."""

    predictions: Predictions
    onnx: Path


@dataclass(frozen=True)
class Evaluator:
    """Evaluates ONNX files on the data sets of a run, on all cores. Ranks share the images, except those of maps."""

    data: DataModule
    source: ModelSource
    progress: Progress
    dense: Reference | None
    """None for the dense model itself."""

    def evaluate(self, path: Path, label: str) -> tuple[tuple[Accuracy, ...], Predictions]:
        """Return the metrics of an ONNX file on every evaluation set, and its predictions."""
        forward = forward_of(path)
        if self.source.has_maps:
            compared = self._compared_maps(forward, label)
            return tuple(_accuracy(self.data, name, found) for name, found in compared.items()), {}
        task = task_for(self.source)
        sets = evaluation_sets(self.data) | ({CALIBRATION: self.data.calibration} if task.uses_calibration else {})
        found: dict[str, Predicted] = {}
        for name, dataset in sets.items():
            outputs, labels = predict(
                forward, dataset, BATCH, self.progress, f"{label}: accuracy on {name}", by_ranks=True
            )
            found[name] = Predicted(task.stored(outputs), labels)
        dense: Mapping[str, torch.Tensor] = self.dense.predictions if self.dense else {}
        accuracies = tuple(
            _accuracy(
                self.data,
                name,
                task.scores(found[name], dense.get(name), found.get(CALIBRATION), dense.get(CALIBRATION)),
            )
            for name in evaluation_sets(self.data)
        )
        return accuracies, {name: one.values for name, one in found.items()}

    def _compared_maps(self, forward: Model, label: str) -> dict[str, dict[str, float]]:
        """Return the metrics of maps by evaluation set: the dense model runs beside the other, batch by batch."""
        if self.dense is None:
            return {name: {} for name in evaluation_sets(self.data)}
        dense, scores = forward_of(self.dense.onnx), {}
        for name, dataset in evaluation_sets(self.data).items():
            comparison = MapComparison(self.source.outputs)

            def compare(images: torch.Tensor, comparison: MapComparison = comparison) -> None:
                comparison.add(output_list(dense(images)), output_list(forward(images)))

            run_over(compare, dataset, BATCH, self.progress, f"{label}: comparison on {name}")
            scores[name] = comparison.scores()
        return scores


def forward_of(path: Path) -> Model:
    """Return the model of an ONNX file in ONNX Runtime, on all cores."""
    model = OnnxModel(path)

    def forward(images: torch.Tensor) -> Outputs:
        return [torch.from_numpy(one) for one in model.run(images.numpy())]

    return forward


def _accuracy(data: DataModule, name: str, metrics: dict[str, float]) -> Accuracy:
    return Accuracy(dataset=name, n=len(evaluation_sets(data)[name]), metrics=metrics, runtime="onnxruntime")


def evaluation_sets(data: DataModule) -> dict[str, Dataset]:
    """Return the data sets `val` and those of `data.also_evaluate`."""
    return {"val": data.val, **data.extra}
