"""What each stage did, in words and notes, and where a simulated target spends its cycles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vitslim.report.columns import (
    Cell,
    Column,
    Group,
    Setting,
    accuracy,
    datasets,
    measured_settings,
    measurement,
    simulated_settings,
)
from vitslim.results import EstimateRow, Report, StageRecord
from vitslim.units import format_bytes, format_count, format_ms, format_percent, format_points


@dataclass(frozen=True)
class StageDetail:
    """One stage and how the model changed against the stage before it."""

    stage: StageRecord
    effects: tuple[str, ...]


@dataclass(frozen=True)
class Breakdown:
    """Cycles of one stage on one simulated target by operator."""

    title: str
    groups: tuple[Group, ...]


def stage_details(report: Report) -> tuple[StageDetail, ...]:
    """Every stage with its effect, computed against the stage before (not against the dense model)."""
    return tuple(
        StageDetail(stage, tuple(_effects(report, index)) if index else ()) for index, stage in enumerate(report.stages)
    )


def _effects(report: Report, index: int) -> Iterator[str]:
    before, after = report.stages[index - 1], report.stages[index]
    for name in datasets(report):
        old, new = accuracy(report, index - 1, name), accuracy(report, index, name)
        if old and new:
            change = format_points(new.top1 - old.top1)
            yield f"top-1 on {name} {format_percent(old.top1)} → {format_percent(new.top1)} ({change} points)"
    if before.cost.macs != after.cost.macs:
        change = _change(before.cost.macs, after.cost.macs)
        yield f"MACs {format_count(before.cost.macs)} → {format_count(after.cost.macs)}{change}"
    if before.onnx_bytes and after.onnx_bytes and before.onnx_bytes != after.onnx_bytes:
        change = _change(before.onnx_bytes, after.onnx_bytes)
        yield f"ONNX {format_bytes(before.onnx_bytes)} → {format_bytes(after.onnx_bytes)}{change}"
    for setting in measured_settings(report):
        slow, fast = measurement(before, setting), measurement(after, setting)
        if slow and fast:
            within = abs(slow.median_ms - fast.median_ms) <= max(slow.spread_ms, fast.spread_ms)
            change = " (within the spread)" if within else _change(slow.median_ms, fast.median_ms)
            yield f"measured, {setting}: {format_ms(slow.median_ms)} → {format_ms(fast.median_ms)}{change}"


def _change(before: float, after: float) -> str:
    """The change of a positive number in percent, in brackets."""
    return f" ({100 * (after / before - 1):+.1f} %)" if before else ""


def breakdowns(report: Report) -> tuple[Breakdown, ...]:
    """Operators of the dense and of the last model on every simulated target, the costliest first."""
    found = []
    for setting in simulated_settings(report):
        for stage in dict.fromkeys((report.stages[0].name, report.stages[-1].name)):
            rows = _rows(report, stage, setting)
            if rows:
                found.append(Breakdown(f"{stage} on {setting}", (_breakdown(rows),)))
    return tuple(found)


def _rows(report: Report, name: str, setting: Setting) -> tuple[EstimateRow, ...]:
    stage = next(stage for stage in report.stages if stage.name == name)
    estimates = (e for e in stage.estimates if Setting(e.backend, e.batch) == setting)
    return tuple(sorted((row for e in estimates for row in e.rows), key=lambda row: -row.cycles))


def _breakdown(rows: tuple[EstimateRow, ...]) -> Group:
    total = max(sum(row.cycles for row in rows), 1)
    return Group(
        (),
        "simulated",
        (
            Column("operator", "", tuple(Cell(row.name) for row in rows), numeric=False),
            Column("kind", "", tuple(Cell(row.op) for row in rows), numeric=False),
            Column("count", "counted", tuple(Cell(str(row.count)) for row in rows)),
            Column("MACs", "counted", tuple(Cell(f"{row.macs:,}") for row in rows)),
            Column("cycles", "simulated", tuple(Cell(f"{row.cycles:,}") for row in rows)),
            Column("of all", "simulated", tuple(Cell(format_percent(row.cycles / total)) for row in rows)),
            Column("utilisation", "simulated", tuple(Cell(format_percent(row.utilisation)) for row in rows)),
        ),
    )
