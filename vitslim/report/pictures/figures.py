"""The plots of a report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vitslim.report.metric_format import format_metric
from vitslim.report.pictures.plots import Mark, Series, bar_plot, dot_plot
from vitslim.report.tables.columns import (
    Setting,
    Source,
    accuracy,
    datasets,
    estimate,
    measured_settings,
    measurement,
    metric_keys,
    simulated_settings,
)
from vitslim.results import Accuracy, Estimate, Measurement, Report
from vitslim.tasks import describe_metric
from vitslim.units import decimals, format_bytes, format_median, format_ms

COUNTED = ("top1", "knn_top1")
"""Metrics that are a share of the images, with a binomial standard error."""
SHOWN_SETS = 3
"""Largest number of data sets in one plot; the table has all."""


@dataclass(frozen=True)
class Figure:
    """A plot with its title, note and legend."""

    title: str
    source: Source
    note: str
    svg: str
    """Well-formed SVG whose texts are escaped."""
    legend: tuple[str, ...] = ()


def overview_figures(report: Report) -> tuple[Figure, ...]:
    """Return accuracy, size, and latency in the first measured and the first simulated setting."""
    found = [accuracy_figure(report), size_figure(report)]
    found += [measured_figure(report, setting) for setting in measured_settings(report)[:1]]
    found += [simulated_figure(report, setting) for setting in simulated_settings(report)[:1]]
    return tuple(figure for figure in found if figure)


def further_figures(report: Report, source: Source) -> Iterator[Figure]:
    """Yield the latency plots of all other settings, `measured` or `simulated`."""
    if source == "measured":
        yield from (measured_figure(report, setting) for setting in measured_settings(report)[1:])
    if source == "simulated":
        yield from (simulated_figure(report, setting) for setting in simulated_settings(report)[1:])


def accuracy_figure(report: Report) -> Figure | None:
    """Return the first metric of the task per stage, one series per data set; None without accuracies."""
    names = datasets(report)[:SHOWN_SETS]
    rows = {name: [accuracy(report, i, name) for i in range(len(report.stages))] for name in names}
    key = next(iter(metric_keys(row for found in rows.values() for row in found)), None)
    if key is None:
        return None
    series = [Series(name, tuple(_accuracy_mark(row, key) for row in found)) for name, found in rows.items()]
    metric = describe_metric(key)
    axis = f"{metric.words}, %" if metric.unit == "percent" else metric.words
    axis = "top-1 accuracy, %" if key == "top1" else axis
    svg = dot_plot("Accuracy per stage, measured", axis, _labels(report), series)
    whiskers = "Whiskers: ± one standard error. " if key in COUNTED else ""
    note = f"{whiskers}The axis does not start at zero."
    return Figure("Accuracy", "measured", note, svg, names if len(names) > 1 else ())


def _accuracy_mark(found: Accuracy | None, key: str) -> Mark | None:
    if found is None or key not in found.metrics:
        return None
    value, of = found.metrics[key], f"{found.n:,} images, {found.runtime}"
    if describe_metric(key).unit != "percent":
        return Mark(value, format_metric(key, value), f"{format_metric(key, value)}, {of}")
    percent = 100 * value
    if key not in COUNTED:
        return Mark(percent, f"{percent:.1f}", f"{format_metric(key, value)}, {of}")
    error = standard_error(value, found.n)
    spread = min(200 * error, 2 * (100 - percent))
    return Mark(percent, f"{percent:.1f}", f"{format_metric(key, value)} ± {100 * error:.1f}, {of}", spread)


def standard_error(share: float, images: int) -> float:
    """Return the binomial standard error of a share of images, both in [0, 1]."""
    return math.sqrt(max(share * (1 - share), 0.0) / images) if images else 0.0


def size_figure(report: Report) -> Figure | None:
    """Return the size of the ONNX file per stage; None without sizes."""
    marks = tuple(
        Mark(s.onnx_bytes / 1e6, format_bytes(s.onnx_bytes), f"{s.onnx_bytes:,} bytes") if s.onnx_bytes else None
        for s in report.stages
    )
    if not any(marks):
        return None
    svg = bar_plot("Size of the ONNX file per stage", "ONNX file, MB", _labels(report), marks, "counted")
    return Figure("Size", "counted", "Size of the ONNX file on disk.", svg)


def measured_figure(report: Report, setting: Setting) -> Figure:
    """Return the measured latency per stage in one setting."""
    found = [measurement(stage, setting) for stage in report.stages]
    digits = max((decimals(m.median_ms) for m in found if m), default=0)
    marks = tuple(_measured_mark(m, digits, setting) if m else None for m in found)
    title = f"Latency per stage, measured, {setting}"
    svg = bar_plot(title, "median latency of a batch, ms", _labels(report), marks, "measured")
    return Figure("Latency, measured", "measured", f"{setting}. Whiskers: interquartile range.", svg)


def _measured_mark(m: Measurement, digits: int, setting: Setting) -> Mark:
    latency = format_median(m.median_ms, m.spread_ms, digits)
    hint = f"{latency} ms, median ± interquartile range of {m.n} runs, {setting}"
    return Mark(m.median_ms, f"{m.median_ms:.{digits}f} ms", hint, m.spread_ms)


def simulated_figure(report: Report, setting: Setting) -> Figure:
    """Return the simulated latency per stage in one setting."""
    found = [estimate(stage, setting) for stage in report.stages]
    marks = tuple(_simulated_mark(e, setting) if e else None for e in found)
    title = f"Latency per stage, simulated, {setting}"
    svg = bar_plot(title, "simulated latency of a batch, ms", _labels(report), marks, "simulated")
    return Figure("Latency, simulated", "simulated", f"{setting}. Computed from the ONNX file, not measured.", svg)


def _simulated_mark(e: Estimate, setting: Setting) -> Mark:
    return Mark(e.latency_ms, format_ms(e.latency_ms), f"{e.latency_ms:.4g} ms, {setting}, {e.calibration}")


def _labels(report: Report) -> tuple[str, ...]:
    return tuple(stage.name for stage in report.stages)
