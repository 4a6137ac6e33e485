"""Evaluate the gates of a recipe on the numbers of the report."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan

from vitslim.recipe.schema import Gates
from vitslim.results import Estimate, GateResult, Measurement, StageRecord
from vitslim.tasks import GATE_METRICS, METRICS


def judge(gates: Gates, stages: tuple[StageRecord, ...]) -> tuple[GateResult, ...]:
    """Return every gate of the recipe with its value and whether it passed; compares the last stage with the first."""
    return tuple(_judge(gates, stages[0], stages[-1]))


def _judge(gates: Gates, dense: StageRecord, final: StageRecord) -> Iterator[GateResult]:
    if gates.top1_drop_max is not None:
        drop = round(100 * (_metric(dense, "top1") - _metric(final, "top1")), 6)
        yield GateResult(
            name="top1_drop_max", limit=gates.top1_drop_max, value=drop, passed=drop <= gates.top1_drop_max
        )
    for gate, metric in GATE_METRICS.items():
        limit = getattr(gates, gate)
        if limit is not None and gate.endswith("_min"):
            factor = 100 if METRICS[metric].unit == "percent" else 1
            yield _at_least(gate, limit, factor * _metric(final, metric))
    if gates.size_ratio_min is not None:
        yield _at_least("size_ratio_min", gates.size_ratio_min, dense.onnx_bytes / final.onnx_bytes)
    if gates.macs_ratio_min is not None:
        yield _at_least("macs_ratio_min", gates.macs_ratio_min, dense.cost.macs / final.cost.macs)
    for backend, limit in gates.speedup_min.items():
        yield _at_least(f"speedup_min {backend}", limit, _speedup(final, backend))


def _at_least(name: str, limit: float, value: float) -> GateResult:
    return GateResult(name=name, limit=limit, value=value, passed=value >= limit)


def _metric(record: StageRecord, key: str) -> float:
    """Return a metric on val; NaN where it was not measured."""
    return next((found.metrics.get(key, nan) for found in record.accuracies if found.dataset == "val"), nan)


def _speedup(record: StageRecord, backend: str) -> float:
    """Return the speedup at the first batch size and thread count of the report; NaN when there is none."""
    results: list[Measurement | Estimate] = [*record.measurements, *record.estimates]
    return next((result.speedup for result in results if result.backend == backend and result.speedup), nan)
