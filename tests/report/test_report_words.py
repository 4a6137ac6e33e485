"""Formatted numbers and sentences of a report."""

from __future__ import annotations

import math

import pytest

from vitslim import units
from vitslim.report.tables.headline import headline
from vitslim.report.tables.stage_details import stage_details
from vitslim.report.wording import baseline, gate_line, gates_verdict, plain, reasons
from vitslim.results import GateResult, LayerNote, Report


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.format_ratio(3.14), "3.1x"),
        (units.format_ratio(1.024), "1.02x"),
        (units.format_ratio(1.999), "2.0x"),
        (units.format_ratio(162.4), "162x"),
        (units.format_factor(1.995), "2.00x" if f"{1.995:.2f}" == "2.00" else "1.99x"),
        (units.format_points(-0.0031), "-0.3"),
        (units.format_points(0.0031), "+0.3"),
        (units.format_points(-0.0001), "0.0"),
        (units.format_median(1.8349, 0.0512), "1.83 ±0.05"),
        (units.format_median(183.4, 5.1), "183 ±5"),
        (units.format_median(0.0, 0.0), "0.00 ±0.00"),
        (units.format_ms(3.1), "3.10 ms"),
        (units.format_ms(123.4), "123 ms"),
        (units.format_duration(0.42), "0.4 s"),
        (units.format_duration(185), "3 min 5 s"),
        (units.format_duration(59.7), "1 min 0 s"),
        (units.format_duration(7800), "2 h 10 min"),
    ],
)
def test_numbers_are_formatted_with_units(text: str, expected: str) -> None:
    assert text == expected


def test_the_headline_names_a_slower_and_larger_model(full_report: Report) -> None:
    dense, final = full_report.stages[0], full_report.stages[-1]
    slow = final.measurements[0].model_copy(update={"speedup": 0.8})
    worse = final.model_copy(update={"measurements": (slow,), "onnx_bytes": 2 * dense.onnx_bytes})
    accuracies = tuple(a.model_copy(update={"metrics": {"top1": 0.7300}}) for a in final.accuracies[:1])
    report = full_report.model_copy(update={"stages": (dense, worse), "final_accuracies": accuracies})
    assert headline(report).startswith("1.25x slower, 2.0x larger, +0.9 points top-1 (")


def test_the_headline_omits_unknown_figures(full_report: Report, bare_report: Report) -> None:
    assert headline(bare_report) == ""
    unmeasured = tuple(stage.model_copy(update={"measurements": ()}) for stage in full_report.stages)
    assert headline(full_report.model_copy(update={"stages": unmeasured})) == "6.7x smaller, -0.8 points top-1"


def test_final_accuracy_is_that_of_the_exported_file(full_report: Report) -> None:
    final = tuple(a.model_copy(update={"metrics": {"top1": 0.5}}) for a in full_report.final_accuracies)
    assert "-22.1 points top-1" in headline(full_report.model_copy(update={"final_accuracies": final}))


def test_effects_compare_with_the_stage_before(full_report: Report) -> None:
    details = stage_details(full_report)
    assert details[0].effects == ()
    assert "top-1 on val 64.9 % → 71.5 % (+6.6 points)" in details[3].effects
    assert "measured, onnxruntime:cpu, batch 1, 1 thread: 5.11 ms → 5.09 ms (within the spread)" in details[3].effects
    assert "ONNX 12.15 MB → 3.40 MB (-72.0 %)" in details[4].effects


def test_gates_are_formatted_with_limit_and_unit() -> None:
    gate = GateResult(name="top1_drop_max", limit=1.5, value=0.814, passed=True)
    assert (gate_line(gate).value, gate_line(gate).limit) == ("0.81 points", "at most 1.50 points")
    unknown = GateResult(name="speedup_min sim:systolic", limit=2, value=math.nan, passed=False)
    assert (gate_line(unknown).value, gate_line(unknown).limit) == ("not measured", "at least 2.00x")
    assert gates_verdict([gate, unknown]) == "1 of 2 gates failed"
    assert gates_verdict([]) == ""


def test_reasons_for_skipping_are_counted() -> None:
    notes = [
        LayerNote(layer="a", result="skipped", reason="odd"),
        LayerNote(layer="b", result="skipped", reason="named"),
    ]
    assert reasons([*notes, notes[1]]) == (("named", 2), ("odd", 1))


def test_the_baseline_has_its_weight_format(full_report: Report) -> None:
    assert baseline(full_report) == "00-dense (FP32)"


def test_plain_keeps_letters_of_all_languages() -> None:
    assert plain("Größe 尺寸\n\x1b[0m") == "Größe 尺寸 \N{REPLACEMENT CHARACTER}[0m"
