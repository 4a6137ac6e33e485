"""The numbers of a report as columns, computed once for every renderer.

Each column has one source, so that measured and simulated values are never in the same column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from vitslim.report.metric_format import format_metric
from vitslim.results import Accuracy, Estimate, Measurement, Report, StageRecord
from vitslim.tasks import METRICS, describe_metric
from vitslim.units import (
    decimals,
    flops,
    format_bytes,
    format_count,
    format_factor,
    format_median,
    format_points,
)

Source = Literal["", "measured", "simulated", "counted"]
"""Provenance of a value; counted values, such as parameters and MACs, follow from the model alone."""


@dataclass(frozen=True)
class Cell:
    """One formatted value."""

    text: str = ""
    note: str = ""
    """Ratio to the dense model, such as `0.47x`."""
    hint: str = ""
    """Tooltip: how the value was obtained."""
    tone: Literal["", "good", "bad"] = ""


@dataclass(frozen=True)
class Column:
    """One quantity for every stage."""

    header: str
    source: Source
    cells: tuple[Cell, ...]
    numeric: bool = True

    @property
    def noted(self) -> bool:
        """Whether any cell has a note; the other cells then reserve its width, so that values are aligned."""
        return any(cell.note for cell in self.cells)


@dataclass(frozen=True)
class Group:
    """Related columns; the titles name their conditions."""

    titles: tuple[str, ...]
    source: Source
    columns: tuple[Column, ...]


@dataclass(frozen=True, order=True)
class Setting:
    """Conditions of a latency; `threads` is 0 for a simulated target."""

    backend: str
    batch: int
    threads: int = 0

    def __str__(self) -> str:
        return f"{self.backend}, {self.load}"

    @property
    def load(self) -> str:
        """Batch size and threads: `batch 1, 1 thread`."""
        threads = f", {self.threads} {'thread' if self.threads == 1 else 'threads'}" if self.threads else ""
        return f"batch {self.batch}{threads}"


EMPTY = Cell()
BASELINE = Cell("baseline")

T = TypeVar("T")


def measured_settings(report: Report) -> tuple[Setting, ...]:
    """Return all settings in which a stage was measured, in the order of the recipe."""
    found = (Setting(m.backend, m.batch, m.threads) for stage in report.stages for m in stage.measurements)
    return tuple(dict.fromkeys(found))


def simulated_settings(report: Report) -> tuple[Setting, ...]:
    """Return all settings for which a stage was simulated, in the order of the recipe."""
    found = (Setting(e.backend, e.batch) for stage in report.stages for e in stage.estimates)
    return tuple(dict.fromkeys(found))


def measurement(stage: StageRecord, setting: Setting) -> Measurement | None:
    """Return the measurement of a stage in a setting; None when there is none."""
    return next((m for m in stage.measurements if Setting(m.backend, m.batch, m.threads) == setting), None)


def estimate(stage: StageRecord, setting: Setting) -> Estimate | None:
    """Return the estimate of a stage for a setting; None when there is none."""
    return next((e for e in stage.estimates if Setting(e.backend, e.batch) == setting), None)


def datasets(report: Report) -> tuple[str, ...]:
    """Return the names of the evaluated data sets, `val` first."""
    found = [a.dataset for stage in report.stages for a in stage.accuracies]
    names = dict.fromkeys([*found, *(a.dataset for a in report.final_accuracies)])
    return tuple(sorted(names, key=lambda name: name != "val"))


def accuracy(report: Report, index: int, dataset: str) -> Accuracy | None:
    """Return the accuracy of a stage on a data set; for the last stage that of the exported file, if evaluated."""
    final = report.final_accuracies if index == len(report.stages) - 1 else ()
    return next((a for a in (*final, *report.stages[index].accuracies) if a.dataset == dataset), None)


def stage_group(report: Report) -> Group:
    """Return the names and methods of the stages."""
    names = tuple(Cell(stage.name) for stage in report.stages)
    methods = tuple(Cell(stage.method, hint=stage.kind) for stage in report.stages)
    return Group((), "", (Column("stage", "", names, numeric=False), Column("method", "", methods, numeric=False)))


def accuracy_group(report: Report, dataset: str, counts: bool = False) -> Group:
    """Return the metrics of the task: for classification top-1, its change in points, and top-1 agreement.

    A metric that the dense model has too is followed by its change from the dense model. With `counts` also the number
    of images and the runtime.
    """
    rows = [accuracy(report, index, dataset) for index in range(len(report.stages))]
    columns = (
        *(column for key in metric_keys(rows) for column in _metric_columns(rows, key)),
        Column("images", "", _cells(rows, lambda a: Cell(f"{a.n:,}")) if counts else ()),
        Column("runtime", "", _cells(rows, lambda a: Cell(a.runtime)) if counts else (), numeric=False),
    )
    return Group((dataset,), "measured", _filled(columns))


def metric_keys(rows: Iterable[Accuracy | None]) -> tuple[str, ...]:
    """Return the keys of all metrics of some accuracies, in the order of `vitslim.tasks`."""
    found = dict.fromkeys(key for row in rows if row for key in row.metrics)
    known = [key for key in METRICS if key in found]
    return (*known, *(key for key in found if key not in METRICS))


def _metric_columns(rows: Sequence[Accuracy | None], key: str) -> Iterator[Column]:
    metric, dense = describe_metric(key), rows[0]
    values = [None if row is None else row.metrics.get(key) for row in rows]
    hints = ["" if row is None else f"{row.n:,} images, {row.runtime}" for row in rows]
    cells = tuple(
        EMPTY if value is None else Cell(format_metric(key, value), hint=hint)
        for value, hint in zip(values, hints, strict=True)
    )
    yield Column(metric.label, "measured", cells)
    before = values[0]
    if dense is not None and before is not None and not metric.against_dense:
        changes = (None, *values[1:])
        points = _cells(changes, lambda value: Cell(format_points(value - before)))
        yield Column("points", "measured", points)


def size_group(report: Report) -> Group:
    """Return parameters, MACs and the size of the ONNX file."""
    shown = {"params": "params", "MACs": "MACs", "ONNX file": "ONNX"}
    columns = (
        Column(shown[column.header], column.source, tuple(replace(cell, note="") for cell in column.cells))
        for column in cost_group(report).columns
        if column.header in shown
    )
    return Group((), "counted", tuple(columns))


def cost_group(report: Report) -> Group:
    """Return parameters, MACs, FLOPs, BOPs and bytes, each with its ratio to the dense model."""
    stages = report.stages
    columns = (
        Column("params", "counted", _against_dense(stages, lambda s: s.cost.params, format_count)),
        Column("MACs", "counted", _against_dense(stages, lambda s: s.cost.macs, format_count)),
        Column("FLOPs", "counted", _against_dense(stages, lambda s: flops(s.cost.macs), format_count)),
        Column("BOPs", "counted", _against_dense(stages, lambda s: s.cost.bops, format_count)),
        Column("ONNX file", "counted", _against_dense(stages, lambda s: s.onnx_bytes, format_bytes)),
        Column("weights", "counted", _against_dense(stages, lambda s: s.cost.weight_bytes, format_bytes)),
        Column("on device", "counted", _against_dense(stages, lambda s: s.cost.device_bytes, format_bytes)),
    )
    return Group((), "counted", _filled(columns))


def measured_group(report: Report, setting: Setting) -> Group:
    """Return median latency with interquartile range in ms, and the speedup over the dense model."""
    rows = [measurement(stage, setting) for stage in report.stages]
    digits = max((decimals(m.median_ms) for m in rows if m), default=0)
    latency = _cells(
        rows, lambda m: Cell(format_median(m.median_ms, m.spread_ms, digits), hint=f"{m.n} runs, {m.backend}")
    )
    columns = (Column("ms ±IQR", "measured", latency), Column("speedup", "measured", _speedups(rows)))
    return Group(("measured", setting.backend, setting.load), "measured", _filled(columns))


def memory_group(report: Report, setting: Setting) -> Group:
    """Return the peak memory in 10^6 bytes; a group without columns where it was not measured."""
    rows = [measurement(stage, setting) for stage in report.stages]
    hint = "rise of the resident memory of a fresh process"
    cells = _cells(rows, lambda m: EMPTY if m.peak_memory_mb is None else Cell(f"{m.peak_memory_mb:.1f}", hint=hint))
    titles = ("measured", setting.backend, setting.load)
    return Group(titles, "measured", _filled([Column("peak MB", "measured", cells)]))


def simulated_group(report: Report, setting: Setting) -> Group:
    """Return simulated latency in ms, speedup over the dense model, energy in mJ, and compute cycles."""
    rows = [estimate(stage, setting) for stage in report.stages]
    columns = (
        Column("ms", "simulated", _cells(rows, lambda e: Cell(f"{e.latency_ms:.3g}", hint=e.calibration))),
        Column("speedup", "simulated", _speedups(rows)),
        Column(
            "mJ",
            "simulated",
            _cells(rows, lambda e: Cell(f"{e.energy.total_mj:.3g}", hint=e.energy.table) if e.energy else EMPTY),
        ),
        Column(
            "cycles",
            "simulated",
            _cells(rows, lambda e: Cell(f"{e.cycles:,}", hint="compute cycles") if e.cycles is not None else EMPTY),
        ),
    )
    return Group(("simulated", setting.backend, setting.load), "simulated", _filled(columns))


def without(group: Group, *headers: str) -> Group:
    """Return the group without the columns of these headers."""
    return replace(group, columns=tuple(column for column in group.columns if column.header not in headers))


def _speedups(rows: Sequence[Measurement | Estimate | None]) -> tuple[Cell, ...]:
    cells = tuple(map(_speedup, rows))
    if any(cell != EMPTY for cell in cells) and rows[0] is not None and rows[0].speedup is None:
        return (BASELINE, *cells[1:])
    return cells


def _speedup(result: Measurement | Estimate | None) -> Cell:
    if result is None or result.speedup is None:
        return EMPTY
    interval = result.speedup_interval if isinstance(result, Measurement) else None
    hint = "" if interval is None else f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
    tone: Literal["", "good", "bad"] = "good" if result.speedup > 1.02 else "bad" if result.speedup < 0.98 else ""
    return Cell(format_factor(result.speedup), hint=hint, tone=tone)


def _cells(rows: Iterable[T | None], render: Callable[[T], Cell]) -> tuple[Cell, ...]:
    return tuple(EMPTY if row is None else render(row) for row in rows)


def _against_dense(
    stages: tuple[StageRecord, ...], value: Callable[[StageRecord], int], render: Callable[[float], str]
) -> tuple[Cell, ...]:
    """Return a cell for each stage with the ratio to the first stage; empty where the value is 0, which is unknown."""
    dense = value(stages[0]) if stages else 0
    return tuple(
        Cell(render(value(s)), note=format_factor(value(s) / dense) if dense and i else "", hint=f"{value(s):,}")
        if value(s)
        else EMPTY
        for i, s in enumerate(stages)
    )


def _filled(columns: Iterable[Column]) -> tuple[Column, ...]:
    """Return the columns that have a value."""
    return tuple(column for column in columns if any(cell != EMPTY for cell in column.cells))
