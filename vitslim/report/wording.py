"""Texts that all renderers share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vitslim.results import Estimate, GateResult, LayerNote, Report
from vitslim.tasks import GATE_METRICS, METRICS
from vitslim.units import format_percent


def plain(text: str) -> str:
    """Return text without control characters; names from files and folders may contain terminal escapes."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def baseline(report: Report) -> str:
    """Return the baseline of speedups and ratios with the format of its weights: `00-dense (FP32)`."""
    if not report.stages:
        return ""
    dense = report.stages[0]
    bits = round(8 * dense.cost.weight_bytes / dense.cost.params) if dense.cost.params else 0
    return f"{dense.name} (FP{bits})" if bits in (16, 32) else dense.name


@dataclass(frozen=True)
class GateLine:
    """A formatted gate."""

    name: str
    limit: str
    value: str
    passed: bool


GATE_UNITS = {"latency_ms_max": "ms", "throughput_min": "images/s", "energy_mj_max": "mJ", "size_mb_max": "MB",
              "gmacs_max": "GMACs", "peak_memory_mb_max": "MB"}  # fmt: skip


def gate_line(gate: GateResult) -> GateLine:
    """Format a gate: the limit with `at most` or `at least`, both numbers with their unit."""
    relation = "at most " if "_max" in gate.name else "at least " if "_min" in gate.name else ""
    limit = relation + _gate_number(gate.name, gate.limit)
    value = _gate_number(gate.name, gate.value)
    if gate.interval is not None:
        low, high = (_gate_number(gate.name, end) for end in gate.interval)
        value += f" (95 % interval {low} to {high})"
    return GateLine(gate.name, limit, value, gate.passed)


def _gate_number(name: str, value: float) -> str:
    if math.isnan(value):
        return "not measured"
    if "ratio" in name or "speedup" in name:
        return f"{value:.2f}x"
    if "drop" in name:
        return f"{value:.2f} points"
    for key, unit in GATE_UNITS.items():
        if name.startswith(key):
            return f"{value:.3g} {unit}"
    metric = GATE_METRICS.get(name)
    return f"{value:.2f} %" if metric and METRICS[metric].unit == "percent" else f"{value:.4g}"


def gates_verdict(gates: Iterable[GateResult]) -> str:
    """Return `all 4 gates passed` or `1 of 4 gates failed`; empty without gates."""
    verdicts = [gate.passed for gate in gates]
    failed = verdicts.count(False)
    if not verdicts:
        return ""
    if failed:
        return f"{failed} of {counted(len(verdicts), 'gate')} failed"
    return "1 gate passed" if len(verdicts) == 1 else f"all {len(verdicts)} gates passed"


def counted(number: int, noun: str) -> str:
    """Return `1 layer` or `3 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def reasons(notes: Iterable[LayerNote]) -> tuple[tuple[str, int], ...]:
    """Return each reason for skipping layers with the number of layers, most frequent first."""
    counts: dict[str, int] = {}
    for note in notes:
        reason = note.reason or note.result
        counts[reason] = counts.get(reason, 0) + 1
    return tuple(sorted(counts.items(), key=lambda item: -item[1]))


def simulators(report: Report) -> tuple[Estimate, ...]:
    """Return one estimate for each simulated backend: the first of the last stage that has one."""
    found = (estimate for stage in report.stages for estimate in reversed(stage.estimates))
    return tuple({estimate.backend: estimate for estimate in found}.values())


def estimate_sums(found: Estimate) -> tuple[str, ...]:
    """Return the terms of a simulated latency, its utilization, and its energy with source and parts."""
    parts = []
    if found.terms_ms:
        parts.append("latency: " + ", ".join(f"{name} {ms:.3g} ms" for name, ms in found.terms_ms.items()))
    if found.kernels is not None:
        parts.append(f"{found.kernels} kernels")
    if found.utilization:
        ways = (found.utilization.ideal, found.utilization.with_stalls, found.utilization.with_loading)
        ideal, stalls, loading = map(format_percent, ways)
        parts.append(f"utilization: {ideal} ideal, {stalls} with stalls, {loading} with loading")
    if found.energy:
        e = found.energy
        split = ", ".join(f"{name} {mj:.3g}" for name, mj in e.parts_mj.items())
        note = f"; assumed: {', '.join(e.assumed)}" if e.assumed else ""
        parts.append(f"energy: {e.total_mj:.3g} mJ ({split}) from {e.table}, {e.node}, {e.source}{note}")
    return tuple(parts)


def estimate_provenance(found: Estimate) -> str:
    """Return the provenance of an estimate: calibration, expected error, terms, settings, assumptions."""
    parts = [f"calibration: {found.calibration or 'uncalibrated'}"]
    parts.append(f"expected error: {found.expected_error or 'unknown'}")
    parts += estimate_sums(found)
    if found.settings:
        parts.append(", ".join(f"{key} {value}" for key, value in found.settings.items()))
    if found.assumed:
        parts.append(f"assumed: {', '.join(found.assumed)}")
    return "; ".join(parts)
