"""Compare two results: runs, reports or ONNX files; and find regressions of one against the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from vitslim.errors import InputError
from vitslim.pipeline.run_folders import REPORT_FILE, read_report
from vitslim.report.tables.columns import Setting
from vitslim.results import Report, Value
from vitslim.tasks import Unit as MetricUnit
from vitslim.tasks import describe_metric
from vitslim.workload import read_workload

Unit = Literal["fraction", "cosine", "dB", "bytes", "count", "ratio", "ms", "mJ"]

UNITS: Mapping[MetricUnit, Unit] = {"percent": "fraction", "cosine": "cosine", "decibel": "dB"}
"""Unit of a metric of the task to its unit here."""
POINTS: tuple[Unit, ...] = ("fraction", "cosine")
"""Units whose changes are differences: one point is 0.01."""


@dataclass(frozen=True)
class _Metric:
    name: str
    value: float
    unit: Unit
    higher_is_better: bool = False
    comparable: bool = True
    """Whether the values of two machines can be compared."""


class Difference(Value):
    """One metric of two results."""

    metric: str
    unit: Unit
    higher_is_better: bool
    comparable: bool
    """False for a latency in milliseconds: only its ratio to the dense model of the same run carries over."""
    baseline: float | None
    """None if only the other result has the metric."""
    result: float | None

    @property
    def change(self) -> float | None:
        """Difference of fractions or cosines, else ratio to the baseline minus 1; None if a value is missing."""
        if self.baseline is None or self.result is None:
            return None
        if self.unit in POINTS:
            return self.result - self.baseline
        return self.result / self.baseline - 1 if self.baseline else None

    def is_regression(self, points: float, percent: float) -> bool:
        """Return whether the result is worse than the baseline by more than the tolerance, or lacks the metric.

        points: tolerance of accuracies, in points; percent: of all other metrics.
        """
        if self.baseline is None or not self.comparable:
            return False
        if self.result is None or not isfinite(self.result):
            return True
        worse = (self.change or 0.0) * (-1 if self.higher_is_better else 1)
        return 100 * worse > (points if self.unit in POINTS else percent) + 1e-9


def compare(baseline: Path, result: Path) -> tuple[Difference, ...]:
    """Return the metrics of two results, each a folder of a run, a report.json or an ONNX file.

    Raises InputError for a path that is none of them, or if the two have no metric in common.
    """
    first, second = ({one.name: one for one in _metrics(path)} for path in (baseline, result))
    if not first.keys() & second.keys():
        raise InputError(f"'{baseline}' and '{result}' have no metric in common", "compare two runs, or two ONNX files")
    return tuple(
        Difference(
            metric=name,
            unit=one.unit,
            higher_is_better=one.higher_is_better,
            comparable=one.comparable,
            baseline=first[name].value if name in first else None,
            result=second[name].value if name in second else None,
        )
        for name, one in (first | second).items()
    )


def _metrics(path: Path) -> Iterator[_Metric]:
    if path.is_dir() or path.suffix == ".json":
        yield from _report_metrics(read_report(path / REPORT_FILE if path.is_dir() else path))
    elif path.suffix == ".onnx":
        workload = read_workload(path)
        yield _Metric("ONNX file", path.stat().st_size, "bytes")
        yield _Metric("MACs of the file", workload.macs, "count")
    else:
        raise InputError(f"'{path}' is not a result", "give the folder of a run, its report.json, or an ONNX file")


def _report_metrics(report: Report) -> Iterator[_Metric]:
    final = report.stages[-1]
    for accuracy in report.final_accuracies:
        for key, value in accuracy.metrics.items():
            metric = describe_metric(key)
            yield _Metric(f"{metric.label}, {accuracy.dataset}", value, UNITS[metric.unit], higher_is_better=True)
    yield _Metric("ONNX file", final.onnx_bytes, "bytes")
    yield _Metric("MACs", final.cost.macs, "count")
    yield _Metric("parameters", final.cost.params, "count")
    yield _Metric("BOPs", final.cost.bops, "count")
    for one in final.measurements:
        setting = Setting(one.backend, one.batch, one.threads)
        if one.speedup is not None:
            yield _Metric(f"speedup over dense, {setting}", one.speedup, "ratio", higher_is_better=True)
        yield _Metric(f"latency, {setting}", one.median_ms, "ms", comparable=False)
        if one.peak_memory_mb is not None:
            yield _Metric(f"peak memory, {setting}", 1e6 * one.peak_memory_mb, "bytes")
    for estimate in final.estimates:
        setting = Setting(estimate.backend, estimate.batch)
        yield _Metric(f"simulated latency, {setting}", estimate.latency_ms, "ms")
        if estimate.energy is not None:
            yield _Metric(f"simulated energy, {setting}", estimate.energy.total_mj, "mJ")
