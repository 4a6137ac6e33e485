"""Off-the-shelf neighbors of a result: smaller timm models with their published latency and accuracy.

The values are those of timm's own result tables (huggingface/pytorch-image-models, folder `results`): top-1 on ImageNet
(commit 0173a139), and FP32 latency at batch 1 in PyTorch 2.4 with dynamo on an Intel i9-10940X (commit 7479d451).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from vitslim.report.tables.columns import measured_settings, measurement
from vitslim.results import Report
from vitslim.units import format_ms, format_percent, format_points, format_ratio

TABLE = "off_the_shelf.csv"
SOURCE = "published by timm: ImageNet top-1, and FP32 latency at batch 1 in PyTorch 2.4 on an Intel i9-10940X"
SHOWN = 3


@dataclass(frozen=True)
class PublishedModel:
    """One model of timm's tables."""

    name: str
    latency_ms: float
    top1: float
    """Percent."""

    @property
    def architecture(self) -> str:
        """Name without the tag of the weights."""
        return self.name.partition(".")[0]


@cache
def published_models() -> tuple[PublishedModel, ...]:
    """Return all models of the table, the fastest first."""
    rows = csv.DictReader((files("vitslim.report") / TABLE).read_text(encoding="utf-8").splitlines())
    found = [PublishedModel(row["model"], float(row["latency_ms"]), float(row["top1"])) for row in rows]
    return tuple(sorted(found, key=lambda one: one.latency_ms))


def find_published(name: str) -> PublishedModel | None:
    """Return the published values of a timm model, by full name or by architecture; None for an unlisted model."""
    models = published_models()
    exact = next((one for one in models if one.name == name), None)
    return exact or next((one for one in models if one.architecture == name.partition(".")[0]), None)


def nearest_smaller(
    dense: PublishedModel, speedup: float, models: Sequence[PublishedModel]
) -> tuple[PublishedModel, ...]:
    """Return at most three models that are faster than `dense`, those nearest to its latency over `speedup`.

    A model is left out if another one is faster and more accurate.
    """
    faster = [one for one in models if one.latency_ms < dense.latency_ms]
    best = [one for one in faster if not any(_dominates(other, one) for other in faster)]
    nearest = sorted(best, key=lambda one: abs(one.latency_ms - dense.latency_ms / speedup))[:SHOWN]
    return tuple(sorted(nearest, key=lambda one: one.latency_ms))


def neighbor_lines(report: Report) -> tuple[str, ...]:
    """Return a line for each smaller timm model near a result.

    Empty for a model or a task that timm does not list, and for a model with another architecture than the listed one:
    one with arguments besides the number of classes.
    """
    dense = find_published(report.model) if report.task == "classify" else None
    if dense is None or report.model_kwargs.keys() - {"num_classes"}:
        return ()
    return tuple(
        f"{one.name}: {format_ratio(dense.latency_ms / one.latency_ms)} faster than {dense.name}, "
        f"{format_points((one.top1 - dense.top1) / 100)} points top-1 ({format_ms(one.latency_ms)}, "
        f"{format_percent(one.top1 / 100)})"
        for one in nearest_smaller(dense, _speedup(report), published_models())
    )


def _speedup(report: Report) -> float:
    """Return the first measured speedup of the final model; without one, its MACs ratio."""
    setting = next(iter(measured_settings(report)), None)
    found = measurement(report.stages[-1], setting) if setting else None
    if found is not None and found.speedup:
        return found.speedup
    return report.stages[0].cost.macs / report.stages[-1].cost.macs


def _dominates(other: PublishedModel, one: PublishedModel) -> bool:
    return other.latency_ms < one.latency_ms and other.top1 > one.top1
