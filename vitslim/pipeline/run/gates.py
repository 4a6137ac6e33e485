"""Evaluate the gates of a recipe on the numbers of the report."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan, sqrt
from typing import NamedTuple

from vitslim.recipe.gates import MEMORY_GATE, GatedSetting, Gates, parse_setting
from vitslim.results import Accuracy, Estimate, GateResult, Measurement, StageRecord
from vitslim.tasks import GATE_METRICS, METRICS

Z = 1.96
"""Standard deviations of a 95 % interval."""


class Value(NamedTuple):
    """A number of the report, with the 95 % interval if it has one."""

    estimate: float
    interval: tuple[float, float] | None = None


UNKNOWN = Value(nan)


def judge(gates: Gates, stages: tuple[StageRecord, ...]) -> tuple[GateResult, ...]:
    """Return every gate of the recipe with its value and whether it passed; compares the last stage with the first."""
    return tuple(_judge(gates, stages[0], stages[-1]))


def _judge(gates: Gates, dense: StageRecord, final: StageRecord) -> Iterator[GateResult]:
    before, after = _on_val(dense), _on_val(final)
    values: dict[str, Value] = {"top1_drop_max": drop(before, after)}
    values |= {gate: _metric(after, metric) for gate, metric in GATE_METRICS.items() if gate.endswith("_min")}
    values |= {
        "size_ratio_min": Value(dense.onnx_bytes / final.onnx_bytes),
        "macs_ratio_min": Value(dense.cost.macs / final.cost.macs),
        "bops_ratio_min": Value(dense.cost.bops / final.cost.bops if final.cost.bops else nan),
        "size_mb_max": Value(final.onnx_bytes / 1e6),
        "gmacs_max": Value(final.cost.macs / 1e9),
    }
    for name, value in values.items():
        limit = getattr(gates, name)
        if limit is not None:
            yield _result(name, name, limit, value, gates.judge)
    for name, limits in gates.of_backends.items():
        for key, limit in limits.items():
            yield _result(f"{name} {key}", name, limit, _on_backend(final, parse_setting(key), name), gates.judge)


def _result(title: str, gate: str, limit: float, value: Value, rule: str) -> GateResult:
    """Return a gate, judged by the estimate, or by the worse (strict) or the better (lenient) end of the interval."""
    is_maximum = gate.endswith("_max")
    low, high = value.interval or (value.estimate, value.estimate)
    judged = value.estimate if rule == "estimate" else high if is_maximum == (rule == "strict") else low
    passed = judged <= limit if is_maximum else judged >= limit
    return GateResult(name=title, limit=limit, value=value.estimate, interval=value.interval, passed=passed)


def drop(before: Accuracy | None, after: Accuracy | None) -> Value:
    """Return the loss of top-1 in points, with an interval that is at least as wide as the paired one.

    Both models are judged on the same images, so the loss varies only on images on which their classes differ.
    """
    if before is None or after is None or not {"top1"} <= before.metrics.keys() & after.metrics.keys():
        return UNKNOWN
    lost = before.metrics["top1"] - after.metrics["top1"]
    differing = 1 - after.metrics.get("agreement", 0.0)
    margin = Z * sqrt(max(differing - lost**2, 0.0) / after.n)
    return Value(round(100 * lost, 6), (100 * (lost - margin), 100 * (lost + margin)))


def fraction_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction of `count` images (Wilson, 1927), in [0, 1]."""
    center = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    margin = Z * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return max(center - margin, 0.0), min(center + margin, 1.0)


def _on_val(record: StageRecord) -> Accuracy | None:
    return next((found for found in record.accuracies if found.dataset == "val"), None)


def _metric(found: Accuracy | None, key: str) -> Value:
    """Return a metric on val, in percent if it is a fraction. Means over labels or images have no interval."""
    if found is None or key not in found.metrics:
        return UNKNOWN
    value = found.metrics[key]
    if METRICS[key].unit != "percent":
        return Value(value)
    if key == "map":
        return Value(100 * value)
    low, high = fraction_interval(value, found.n)
    return Value(100 * value, (100 * low, 100 * high))


def _on_backend(record: StageRecord, setting: GatedSetting, gate: str) -> Value:
    """Return a latency, speedup, throughput or energy of the final model; UNKNOWN if the report lacks it."""
    results: list[Measurement | Estimate] = [*record.measurements, *record.estimates]
    found = next((one for one in results if _is(one, setting)), None)
    if found is None:
        return UNKNOWN
    if gate == "energy_mj_max":
        energy = found.energy if isinstance(found, Estimate) else None
        return UNKNOWN if energy is None else Value(energy.total_mj)
    if gate == "speedup_min":
        interval = found.speedup_interval if isinstance(found, Measurement) else None
        return UNKNOWN if found.speedup is None else Value(found.speedup, interval)
    if gate == MEMORY_GATE:
        memory = found.peak_memory_mb if isinstance(found, Measurement) else None
        return UNKNOWN if memory is None else Value(memory)
    latency_ms = found.median_ms if isinstance(found, Measurement) else found.latency_ms
    return Value(latency_ms if gate == "latency_ms_max" else 1e3 * found.batch / latency_ms)


def _is(found: Measurement | Estimate, setting: GatedSetting) -> bool:
    threads = found.threads if isinstance(found, Measurement) else setting.threads
    return (
        found.backend == setting.backend and setting.batch in (None, found.batch) and setting.threads in (None, threads)
    )
