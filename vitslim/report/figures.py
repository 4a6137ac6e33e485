"""The plots of a report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vitslim.report.columns import (
    Setting,
    Source,
    accuracy,
    datasets,
    estimate,
    measured_settings,
    measurement,
    simulated_settings,
)
from vitslim.report.plots import Mark, Series, bar_plot, dot_plot
from vitslim.results import Accuracy, Estimate, Measurement, Report
from vitslim.units import decimals, format_bytes, format_median, format_ms, format_percent

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
    """Return top-1 accuracy per stage, one series per data set; None without accuracies."""
    names = datasets(report)[:SHOWN_SETS]
    rows = range(len(report.stages))
    series = [Series(name, tuple(_accuracy_mark(accuracy(report, i, name)) for i in rows)) for name in names]
    if not series:
        return None
    svg = dot_plot("Accuracy per stage, measured", "top-1 accuracy, %", _labels(report), series)
    note = "Whiskers: ± one standard error. The axis does not start at zero."
    return Figure("Accuracy", "measured", note, svg, names if len(names) > 1 else ())


def _accuracy_mark(found: Accuracy | None) -> Mark | None:
    if found is None:
        return None
    error = standard_error(found)
    percent = 100 * found.top1
    spread = min(200 * error, 2 * (100 - percent))
    hint = f"{format_percent(found.top1)} ± {100 * error:.1f}, {found.n:,} images, {found.runtime}"
    return Mark(percent, f"{percent:.1f}", hint, spread)


def standard_error(found: Accuracy) -> float:
    """Return the binomial standard error of a top-1 accuracy, as a fraction."""
    return math.sqrt(max(found.top1 * (1 - found.top1), 0.0) / found.n) if found.n else 0.0


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
