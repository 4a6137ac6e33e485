"""Headline of a report: the final model against the dense model, in one line."""

from __future__ import annotations

from dataclasses import dataclass

from vitslim.report.metric_format import format_metric
from vitslim.report.tables.columns import (
    accuracy,
    datasets,
    estimate,
    measured_settings,
    measurement,
    metric_keys,
    simulated_settings,
)
from vitslim.results import Report
from vitslim.tasks import describe_metric
from vitslim.units import format_bytes, format_count, format_ms, format_points, format_ratio


@dataclass(frozen=True)
class Fact:
    """One headline figure: `3.1x` `faster`, with the values of both models."""

    figure: str
    words: str
    detail: str
    source: str
    """`measured`, `simulated` or `counted`."""

    def __str__(self) -> str:
        return f"{self.figure} {self.words}"


def headline(report: Report) -> str:
    """Return `3.1x faster, 5.2x smaller, -0.3 points top-1 (onnxruntime:cpu, batch 1, 1 thread, CPU NAME)`.

    Contains no simulated figure. Unknown figures are left out; the line is empty when all are unknown.
    """
    facts = [latency_fact(report), size_fact(report), accuracy_fact(report)]
    text = ", ".join(str(fact) for fact in facts if fact)
    settings = measured_settings(report)
    return f"{text} ({settings[0]}, {report.environment.device})" if facts[0] else text


def latency_fact(report: Report) -> Fact | None:
    """Return the measured speedup of the final model in the first setting of the recipe; None when unknown."""
    setting = next(iter(measured_settings(report)), None)
    found = measurement(report.stages[-1], setting) if setting else None
    dense = measurement(report.stages[0], setting) if setting else None
    if setting is None or found is None or dense is None or found.speedup is None:
        return None
    return Fact(
        *compared(found.speedup, "faster", "slower"),
        detail=f"{format_ms(dense.median_ms)} → {format_ms(found.median_ms)}, {setting}",
        source="measured",
    )


def simulated_fact(report: Report) -> Fact | None:
    """Return the simulated speedup of the final model in the first setting of the recipe; None when unknown."""
    setting = next(iter(simulated_settings(report)), None)
    found = estimate(report.stages[-1], setting) if setting else None
    dense = estimate(report.stages[0], setting) if setting else None
    if setting is None or found is None or dense is None or found.speedup is None:
        return None
    return Fact(
        *compared(found.speedup, "faster", "slower"),
        detail=f"{format_ms(dense.latency_ms)} → {format_ms(found.latency_ms)}, {setting}",
        source="simulated",
    )


def size_fact(report: Report) -> Fact | None:
    """Return the size ratio of the dense to the final ONNX file; None when unknown or unchanged."""
    before, after = (report.stages[0].onnx_bytes, report.stages[-1].onnx_bytes) if report.stages else (0, 0)
    if not before or not after or before == after:
        return None
    detail = f"{format_bytes(before)} → {format_bytes(after)} ONNX"
    return Fact(*compared(before / after, "smaller", "larger"), detail=detail, source="counted")


def macs_fact(report: Report) -> Fact | None:
    """Return the ratio of the MACs of the dense to those of the final model; None when unknown or unchanged."""
    before, after = (report.stages[0].cost.macs, report.stages[-1].cost.macs) if report.stages else (0, 0)
    if not before or not after or before == after:
        return None
    detail = f"{format_count(before)} → {format_count(after)} MACs per image"
    return Fact(*compared(before / after, "fewer MACs", "more MACs"), detail=detail, source="counted")


def accuracy_fact(report: Report) -> Fact | None:
    """Return the first metric on the first data set, of the exported model against the dense model.

    Its change in points, or its value if it compares with the dense model, such as the cosine similarity.
    """
    name = next(iter(datasets(report)), None)
    if name is None or len(report.stages) < 2:
        return None
    before, after = accuracy(report, 0, name), accuracy(report, len(report.stages) - 1, name)
    if before is None or after is None:
        return None
    key = next(iter(metric_keys([after])), None)
    if key is None:
        return None
    metric, value, dense = describe_metric(key), after.metrics[key], before.metrics.get(key)
    shown = format_metric(key, value)
    if metric.against_dense or dense is None:
        return Fact(shown, metric.words, detail=f"on {name}, {after.n:,} images", source="measured")
    detail = f"{format_metric(key, dense)} → {shown} on {name}, {after.n:,} images"
    return Fact(format_points(value - dense), f"points {metric.words}", detail=detail, source="measured")


def compared(ratio: float, better: str, worse: str) -> tuple[str, str]:
    """Return a positive ratio as a number of at least 1: `("3.1x", "faster")`, `("1.20x", "slower")`."""
    if 0 < ratio < 1:
        return format_ratio(1 / ratio), worse
    return format_ratio(ratio), better
