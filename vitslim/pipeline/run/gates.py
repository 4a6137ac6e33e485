"""Evaluate the gates of a recipe on the numbers of the report."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan

from vitslim.recipe.schema import Gates
from vitslim.results import Estimate, GateResult, Measurement, StageRecord


def judge(gates: Gates, stages: tuple[StageRecord, ...]) -> tuple[GateResult, ...]:
    """Return every gate of the recipe with its value and whether it passed; compares the last stage with the first."""
    return tuple(_judge(gates, stages[0], stages[-1]))


def _judge(gates: Gates, dense: StageRecord, final: StageRecord) -> Iterator[GateResult]:
    before, after = 100 * _top1(dense), 100 * _top1(final)
    if gates.top1_drop_max is not None:
        drop = round(before - after, 6)
        yield GateResult(
            name="top1_drop_max", limit=gates.top1_drop_max, value=drop, passed=drop <= gates.top1_drop_max
        )
    if gates.top1_min is not None:
        yield _at_least("top1_min", gates.top1_min, after)
    if gates.size_ratio_min is not None:
        yield _at_least("size_ratio_min", gates.size_ratio_min, dense.onnx_bytes / final.onnx_bytes)
    if gates.macs_ratio_min is not None:
        yield _at_least("macs_ratio_min", gates.macs_ratio_min, dense.cost.macs / final.cost.macs)
    for backend, limit in gates.speedup_min.items():
        yield _at_least(f"speedup_min {backend}", limit, _speedup(final, backend))


def _at_least(name: str, limit: float, value: float) -> GateResult:
    return GateResult(name=name, limit=limit, value=value, passed=value >= limit)


def _top1(record: StageRecord) -> float:
    return next((accuracy.top1 for accuracy in record.accuracies if accuracy.dataset == "val"), nan)


def _speedup(record: StageRecord, backend: str) -> float:
    """Return the speedup at the first batch size and thread count of the report; NaN when there is none."""
    results: list[Measurement | Estimate] = [*record.measurements, *record.estimates]
    return next((result.speedup for result in results if result.backend == backend and result.speedup), nan)
