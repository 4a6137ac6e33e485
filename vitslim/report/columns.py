"""The report's numbers as columns, computed once for every renderer.

A column knows where its values come from, so measured and simulated values cannot meet in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from vitslim.results import Accuracy, Estimate, Measurement, Report, StageRecord
from vitslim.units import (
    decimals,
    flops,
    format_bytes,
    format_count,
    format_factor,
    format_median,
    format_percent,
    format_points,
)

Source = Literal["", "measured", "simulated", "counted"]
"""Where a value comes from; counted values follow from the model alone, such as parameters and MACs."""


@dataclass(frozen=True)
class Cell:
    """One value as people read it."""

    text: str = ""
    note: str = ""
    """What the value is against the dense model, such as `0.47x`."""
    hint: str = ""
    """How the value was obtained, for who points at it."""
    tone: Literal["", "good", "bad"] = ""


@dataclass(frozen=True)
class Column:
    """One quantity over the stages."""

    header: str
    source: Source
    cells: tuple[Cell, ...]
    numeric: bool = True

    @property
    def noted(self) -> bool:
        """Whether any cell carries a note; then the others keep its room free, so that the values line up."""
        return any(cell.note for cell in self.cells)


@dataclass(frozen=True)
class Group:
    """Columns that belong together; the titles say under which conditions they hold."""

    titles: tuple[str, ...]
    source: Source
    columns: tuple[Column, ...]


@dataclass(frozen=True, order=True)
class Setting:
    """Under which conditions a latency holds; `threads` is 0 where a simulated target has none."""

    backend: str
    batch: int
    threads: int = 0

    def __str__(self) -> str:
        return f"{self.backend}, {self.load}"

    @property
    def load(self) -> str:
        """Without the backend: `batch 1, 1 thread`."""
        threads = f", {self.threads} {'thread' if self.threads == 1 else 'threads'}" if self.threads else ""
        return f"batch {self.batch}{threads}"


EMPTY = Cell()
BASELINE = Cell("baseline")

T = TypeVar("T")


def measured_settings(report: Report) -> tuple[Setting, ...]:
    """Every condition under which a stage was measured, in the order of the recipe."""
    found = (Setting(m.backend, m.batch, m.threads) for stage in report.stages for m in stage.measurements)
    return tuple(dict.fromkeys(found))


def simulated_settings(report: Report) -> tuple[Setting, ...]:
    """Every condition for which a stage was simulated, in the order of the recipe."""
    found = (Setting(e.backend, e.batch) for stage in report.stages for e in stage.estimates)
    return tuple(dict.fromkeys(found))


def measurement(stage: StageRecord, setting: Setting) -> Measurement | None:
    """What was measured for a stage under these conditions."""
    return next((m for m in stage.measurements if Setting(m.backend, m.batch, m.threads) == setting), None)


def estimate(stage: StageRecord, setting: Setting) -> Estimate | None:
    """What was simulated for a stage under these conditions."""
    return next((e for e in stage.estimates if Setting(e.backend, e.batch) == setting), None)


def datasets(report: Report) -> tuple[str, ...]:
    """Names of the labeled sets, `val` first."""
    found = [a.dataset for stage in report.stages for a in stage.accuracies]
    names = dict.fromkeys([*found, *(a.dataset for a in report.final_accuracies)])
    return tuple(sorted(names, key=lambda name: name != "val"))


def accuracy(report: Report, index: int, dataset: str) -> Accuracy | None:
    """Top-1 of a stage on a set; for the last stage that of the exported file, where there is one."""
    final = report.final_accuracies if index == len(report.stages) - 1 else ()
    return next((a for a in (*final, *report.stages[index].accuracies) if a.dataset == dataset), None)


def stage_group(report: Report) -> Group:
    """Names and methods of the stages."""
    names = tuple(Cell(stage.name) for stage in report.stages)
    methods = tuple(Cell(stage.method, hint=stage.kind) for stage in report.stages)
    return Group((), "", (Column("stage", "", names, numeric=False), Column("method", "", methods, numeric=False)))


def accuracy_group(report: Report, dataset: str, counts: bool = False) -> Group:
    """Top-1 in percent, the points gained or lost against the dense model, and agreement with it.

    With `counts` also the number of images and the runtime that judged them.
    """
    rows = [accuracy(report, index, dataset) for index in range(len(report.stages))]
    dense = rows[0] if rows else None
    top1 = _cells(rows, lambda a: Cell(format_percent(a.top1), hint=f"n = {a.n}, {a.runtime}"))
    agreement = _cells(rows, lambda a: EMPTY if a.agreement is None else Cell(format_percent(a.agreement)))
    points = _cells(rows, lambda a: EMPTY if dense is None or a is dense else Cell(format_points(a.top1 - dense.top1)))
    columns = (
        Column("top-1", "measured", top1),
        Column("points", "measured", points),
        Column("agreement", "measured", agreement),
        Column("images", "", _cells(rows, lambda a: Cell(f"{a.n:,}")) if counts else ()),
        Column("through", "", _cells(rows, lambda a: Cell(a.runtime)) if counts else (), numeric=False),
    )
    return Group((dataset,), "measured", _filled(columns))


def size_group(report: Report) -> Group:
    """Parameters, MACs and the size of the ONNX file."""
    shown = {"params": "params", "MACs": "MACs", "ONNX file": "ONNX"}
    columns = (
        Column(shown[column.header], column.source, tuple(replace(cell, note="") for cell in column.cells))
        for column in cost_group(report).columns
        if column.header in shown
    )
    return Group((), "counted", tuple(columns))


def cost_group(report: Report) -> Group:
    """MACs, FLOPs, BOPs and bytes in columns of their own, with the fraction of the dense model (specs, 3.1)."""
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
    """Median and interquartile range in ms, and the speed-up against the dense model."""
    rows = [measurement(stage, setting) for stage in report.stages]
    digits = max((decimals(m.median_ms) for m in rows if m), default=0)
    time = _cells(rows, lambda m: Cell(format_median(m.median_ms, m.spread_ms, digits), hint=f"n = {m.n}, {m.backend}"))
    columns = (Column("ms ±IQR", "measured", time), Column("speed-up", "measured", _speedups(rows)))
    return Group(("measured", setting.backend, setting.load), "measured", _filled(columns))


def simulated_group(report: Report, setting: Setting) -> Group:
    """Latency in ms, the speed-up against the dense model, energy, and compute cycles, all simulated."""
    rows = [estimate(stage, setting) for stage in report.stages]
    columns = (
        Column("ms", "simulated", _cells(rows, lambda e: Cell(f"{e.latency_ms:.3g}", hint=e.calibration))),
        Column("speed-up", "simulated", _speedups(rows)),
        Column(
            "mJ",
            "simulated",
            _cells(rows, lambda e: Cell(f"{e.energy.total_mj:.3g}", hint=e.energy.table) if e.energy else EMPTY),
        ),
        Column(
            "cycles",
            "simulated",
            _cells(rows, lambda e: Cell(f"{e.cycles:,}", hint="of compute") if e.cycles is not None else EMPTY),
        ),
    )
    return Group(("simulated", setting.backend, setting.load), "simulated", _filled(columns))


def without(group: Group, *headers: str) -> Group:
    """The group without some of its columns."""
    return replace(group, columns=tuple(column for column in group.columns if column.header not in headers))


def _speedups(rows: Sequence[Measurement | Estimate | None]) -> tuple[Cell, ...]:
    cells = tuple(map(_speedup, rows))
    if any(cell != EMPTY for cell in cells) and rows[0] is not None and rows[0].speedup is None:
        return (BASELINE, *cells[1:])
    return cells


def _speedup(result: Measurement | Estimate | None) -> Cell:
    if result is None or result.speedup is None:
        return EMPTY
    spread = result.speedup_spread if isinstance(result, Measurement) else None
    hint = "" if spread is None else f"interquartile range {spread:.2f}"
    tone: Literal["", "good", "bad"] = "good" if result.speedup > 1.02 else "bad" if result.speedup < 0.98 else ""
    return Cell(format_factor(result.speedup), hint=hint, tone=tone)


def _cells(rows: Iterable[T | None], render: Callable[[T], Cell]) -> tuple[Cell, ...]:
    return tuple(EMPTY if row is None else render(row) for row in rows)


def _against_dense(
    stages: tuple[StageRecord, ...], value: Callable[[StageRecord], int], render: Callable[[float], str]
) -> tuple[Cell, ...]:
    """A positive count for each stage with its fraction of the first; zero means that nobody counted."""
    dense = value(stages[0]) if stages else 0
    return tuple(
        Cell(render(value(s)), note=format_factor(value(s) / dense) if dense and i else "", hint=f"{value(s):,}")
        if value(s)
        else EMPTY
        for i, s in enumerate(stages)
    )


def _filled(columns: Iterable[Column]) -> tuple[Column, ...]:
    """The columns that hold anything at all."""
    return tuple(column for column in columns if any(cell != EMPTY for cell in column.cells))
