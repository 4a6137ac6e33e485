"""Gates on the numbers of a report: each kind, both directions, intervals, and values that were not measured."""

from __future__ import annotations

from math import isnan
from typing import Any

import pytest

from vitslim.pipeline.run.gates import drop, fraction_interval, judge
from vitslim.recipe.gates import Gates, parse_setting, setting_problems
from vitslim.results import GateResult, Report

CPU = "onnxruntime:cpu"


def judged(report: Report, **gates: Any) -> GateResult:
    (found,) = judge(Gates(**gates), report.stages)
    return found


@pytest.mark.parametrize(
    ("gate", "value", "limits"),
    [
        ("top1_drop_max", 0.81, (0.9, 0.8)),
        ("top1_min", 71.31, (71, 72)),
        ("agreement_min", 91.4, (91, 92)),
        ("size_ratio_min", 6.743, (6.7, 6.8)),
        ("macs_ratio_min", 2.904, (2.9, 3)),
        ("bops_ratio_min", 36.93, (36, 37)),
        ("size_mb_max", 3.402, (3.5, 3.4)),
        ("gmacs_max", 0.4319, (0.44, 0.43)),
    ],
)
def test_gates_of_the_model_pass_and_fail(
    full_report: Report, gate: str, value: float, limits: tuple[float, float]
) -> None:
    good, bad = (judged(full_report, **{gate: limit}) for limit in limits)
    assert good.value == pytest.approx(value, rel=1e-3)
    assert good.passed
    assert not bad.passed


@pytest.mark.parametrize(
    ("gate", "key", "value", "limits"),
    [
        ("latency_ms_max", CPU, 3.58, (3.6, 3.5)),
        ("latency_ms_max", f"{CPU}, batch 8", 3.58 * 7.7, (28, 27)),
        ("latency_ms_max", f"{CPU}, batch 8, 2 threads", 3.58 * 4.3, (16, 15)),
        ("throughput_min", f"{CPU}, batch 8", 8 / (3.58e-3 * 7.7), (290, 291)),
        ("speedup_min", CPU, 12.41 / 3.58 * 0.99, (3.4, 3.5)),
    ],
)
def test_gates_of_backends_name_a_batch_and_threads(
    full_report: Report, gate: str, key: str, value: float, limits: tuple[float, float]
) -> None:
    good, bad = (judged(full_report, **{gate: {key: limit}}) for limit in limits)
    assert good.name == f"{gate} {key}"
    assert good.value == pytest.approx(value, rel=1e-3)
    assert good.passed
    assert not bad.passed


@pytest.mark.parametrize("gates", [
    {"map_min": 1}, {"cosine_min": -1}, {"energy_mj_max": {CPU: 1e9}}, {"speedup_min": {"openvino:cpu": 0.1}},
    {"latency_ms_max": {f"{CPU}, batch 64": 1e9}}, {"peak_memory_mb_max": {"sim:systolic": 1e9}},
])  # fmt: skip
def test_a_value_that_was_not_measured_fails(full_report: Report, gates: dict[str, Any]) -> None:
    for rule in ("estimate", "strict", "lenient"):
        found = judged(full_report, **gates, judge=rule)
        assert isnan(found.value)
        assert not found.passed


@pytest.mark.parametrize(
    ("gate", "limit"), [("top1_min", 71.31), ("top1_drop_max", 0.81), ("speedup_min", {CPU: 12.41 / 3.58 * 0.99})]
)
def test_strict_and_lenient_take_the_ends_of_the_interval(full_report: Report, gate: str, limit: Any) -> None:
    """A limit at the estimate itself lies inside the interval."""
    found = {rule: judged(full_report, **{gate: limit}, judge=rule) for rule in ("strict", "lenient")}
    assert not found["strict"].passed
    assert found["lenient"].passed
    low, high = found["strict"].interval or (0, 0)
    assert low < found["strict"].value < high


def test_the_interval_of_a_loss_covers_the_paired_one(full_report: Report) -> None:
    """With 1,000 images, 30 of which only the dense model gets right, and 20 only the other one."""
    before, after = (one.model_copy(update={"n": 1000}) for one in
                     (full_report.stages[0].accuracies[0], full_report.stages[-1].accuracies[0]))  # fmt: skip
    before = before.model_copy(update={"metrics": {"top1": 0.7}})
    after = after.model_copy(update={"metrics": {"top1": 0.69, "agreement": 0.95}})
    lost = drop(before, after)
    paired = 1.96 * 100 * ((30 + 20) / 1000 - 0.01**2) ** 0.5 / 1000**0.5
    assert lost.estimate == pytest.approx(1)
    assert lost.interval == pytest.approx((1 - paired, 1 + paired))


def test_intervals_of_fractions_are_those_of_wilson() -> None:
    assert fraction_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert fraction_interval(1.0, 50) == pytest.approx((0.9286, 1.0), abs=1e-4)
    assert fraction_interval(0.0, 50)[0] == 0


def test_settings_are_parsed_and_checked_against_the_report() -> None:
    assert parse_setting(CPU) == (CPU, None, None)
    assert parse_setting(f"{CPU}, batch 8, 1 thread") == (CPU, 8, 1)
    assert parse_setting("sim:systolic(array=[32, 32]), batch 2") == ("sim:systolic(array=[32, 32])", 2, None)
    gates = Gates(latency_ms_max={f"{CPU}, batch 8, 2 threads": 5}, speedup_min={CPU: 1})
    problems = list(setting_problems(gates, [1], [1], memory=False))
    assert [problem.where for problem in problems] == [f"gates.latency_ms_max.{CPU}, batch 8, 2 threads"] * 2
    assert "not among report.batches" in problems[0].message
    assert not list(setting_problems(gates, [1, 8], [2], memory=False))
    (memory,) = setting_problems(Gates(peak_memory_mb_max={CPU: 50}), [1], [1], memory=False)
    assert (memory.where, memory.hint) == ("gates.peak_memory_mb_max", "set `report.memory: true`")
    assert not list(setting_problems(Gates(peak_memory_mb_max={CPU: 50}), [1], [1], memory=True))
