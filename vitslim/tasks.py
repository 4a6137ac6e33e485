"""Tasks of a model, with the metrics and the gates of each.

Everything that depends on the task asks here (names and units, without torch) or `vitslim.training.tasks` (tensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Task = Literal["classify", "features", "multilabel"]
"""classify: one label for each image; features: an embedding, or the maps of a backbone; multilabel: several labels."""
TASKS: tuple[Task, ...] = get_args(Task)

Unit = Literal["percent", "cosine", "decibel"]

MAP_SQNR = "sqnr_db."
"""Prefix of the metric that records the SQNR of one output of a backbone."""


@dataclass(frozen=True)
class Metric:
    """One metric of the quality of a model on a data set."""

    label: str
    """Header of its column."""
    words: str
    """Its name in a sentence."""
    unit: Unit
    """percent: a fraction in [0, 1], shown as a percentage."""
    against_dense: bool = False
    """Whether it compares with the dense model, which itself has no value."""


METRICS: Mapping[str, Metric] = {
    "top1": Metric("top-1", "top-1", "percent"),
    "agreement": Metric("agreement", "top-1 agreement", "percent", against_dense=True),
    "map": Metric("mAP", "mAP", "percent"),
    "label_agreement": Metric("agreement", "agreement of the labels", "percent", against_dense=True),
    "cosine": Metric("cosine", "cosine similarity", "cosine", against_dense=True),
    "neighbor_agreement": Metric("neighbors", "nearest-neighbor agreement", "percent", against_dense=True),
    "knn_top1": Metric("k-NN top-1", "k-NN top-1", "percent"),
}
"""Key of a metric in results to its description, in the order of the columns."""

TASK_METRICS: Mapping[Task, tuple[str, ...]] = {
    "classify": ("top1", "agreement"),
    "features": ("cosine", "neighbor_agreement", "knn_top1"),
    "multilabel": ("map", "label_agreement"),
}
"""Task to its metrics. A backbone has `cosine` and the SQNR of each output instead."""

EXPLANATIONS: Mapping[Task, str] = {
    "classify": "agreement is the share of images with the same top-1 class",
    "features": "cosine is the mean cosine similarity of the outputs, neighbors the share of images with the same "
    "nearest calibration image, and SQNR the signal-to-quantization-noise ratio of one output",
    "multilabel": "mAP is the mean average precision over the labels, and agreement the share of images with the same "
    "predicted labels",
}
"""Task to the meaning of its columns, for reports."""

GATE_METRICS: Mapping[str, str] = {
    "top1_drop_max": "top1",
    "top1_min": "top1",
    "agreement_min": "agreement",
    "map_min": "map",
    "cosine_min": "cosine",
    "neighbor_agreement_min": "neighbor_agreement",
}
"""Gate of a recipe to the metric that it limits; other gates apply to every task."""


def describe_metric(key: str) -> Metric:
    """Return the description of a metric in results. Raises KeyError for an unknown one."""
    if key.startswith(MAP_SQNR):
        name = key.removeprefix(MAP_SQNR)
        return Metric(f"SQNR {name}", f"SQNR of {name}", "decibel", against_dense=True)
    return METRICS[key]


def gate_tasks(gate: str) -> tuple[Task, ...]:
    """Return the tasks that a gate applies to."""
    metric = GATE_METRICS.get(gate)
    return tuple(task for task in TASKS if metric is None or metric in TASK_METRICS[task])
