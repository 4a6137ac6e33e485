"""Effect of each stage on the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vitslim.report.metric_format import format_metric
from vitslim.report.tables.columns import accuracy, datasets, measured_settings, measurement, metric_keys
from vitslim.results import Report, StageRecord
from vitslim.tasks import describe_metric
from vitslim.units import format_bytes, format_count, format_ms, format_points


@dataclass(frozen=True)
class StageDetail:
    """One stage and its effect, compared with the stage before it."""

    stage: StageRecord
    effects: tuple[str, ...]


def stage_details(report: Report) -> tuple[StageDetail, ...]:
    """Return every stage with its effect, compared with the stage before it (not with the dense model)."""
    return tuple(
        StageDetail(stage, tuple(_effects(report, index)) if index else ()) for index, stage in enumerate(report.stages)
    )


def _effects(report: Report, index: int) -> Iterator[str]:
    before, after = report.stages[index - 1], report.stages[index]
    for name in datasets(report):
        old, new = accuracy(report, index - 1, name), accuracy(report, index, name)
        if old and new and (keys := metric_keys([old, new])):
            yield _change_of_metric(keys[0], name, old.metrics.get(keys[0]), new.metrics.get(keys[0]))
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


def _change_of_metric(key: str, dataset: str, old: float | None, new: float | None) -> str:
    """Return `top-1 on val 72.1 % → 66.0 % (-6.1 points)`; only the new value where the dense model has none."""
    metric, shown = describe_metric(key), "" if new is None else format_metric(key, new)
    if old is None or new is None:
        return f"{metric.words} on {dataset} {shown}"
    change = f" ({format_points(new - old)} points)" if metric.unit == "percent" else ""
    return f"{metric.words} on {dataset} {format_metric(key, old)} → {shown}{change}"


def _change(before: float, after: float) -> str:
    """Return the relative change of a positive number in parentheses: ` (-12.5 %)`."""
    return f" ({100 * (after / before - 1):+.1f} %)" if before else ""
