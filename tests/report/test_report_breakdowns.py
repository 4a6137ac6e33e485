"""Breakdowns and rooflines of simulated latencies."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from vitslim.report import render_html
from vitslim.report.pictures.breakdowns import breakdowns, kind_rows, rooflines
from vitslim.report.pictures.roofline import dots, roofline_plot
from vitslim.results import Energy, Estimate, EstimateRow, Report, Roofline

ROWS = (
    EstimateRow(name="fc1 <b>", op="gemm", count=12, macs=10**9, latency_us=40.0, utilization=0.5, bound="compute",
                dram_bytes=10**7, energy_uj=9.0, calibration="738 products", expected_error="5 %"),
    EstimateRow(name="fc2", op="gemm", count=12, macs=10**9, latency_us=60.0, utilization=0.4, bound="bandwidth",
                dram_bytes=10**8, energy_uj=16.0, calibration="uncalibrated", expected_error="unknown"),
    EstimateRow(name="Norm", op="norm", count=25, macs=0, latency_us=50.0, utilization=0.0, bound="launch",
                dram_bytes=10**6, energy_uj=12.0, calibration="assumed", expected_error="unknown"),
)  # fmt: skip
GPU = Estimate(
    backend="sim:a100",
    batch=1,
    latency_ms=0.15,
    rows=ROWS,
    energy=Energy(table="board power", node="7 nm", source="data sheet", parts_mj={"board": 0.037}),
    roofline=Roofline(peak_tops=312, bandwidth_gbps=1935, precision="fp16"),
)


def test_kinds_are_sums_of_their_rows() -> None:
    gemm, norm = kind_rows(GPU)
    assert (gemm.name, gemm.count, gemm.macs, gemm.latency_us, gemm.energy_uj) == ("gemm", 24, 2 * 10**9, 100.0, 25.0)
    assert (norm.name, norm.latency_us, norm.cycles) == ("norm", 50.0, None)


def test_a_roofline_has_a_dot_for_each_gemm() -> None:
    first, _ = dots(GPU)
    assert first.intensity == pytest.approx(200)
    assert first.tops == pytest.approx(50)
    svg = ET.fromstring(roofline_plot(GPU, "a title & more"))
    circles = [element for element in svg.iter() if element.tag.endswith("circle")]
    assert len(circles) == 2
    ys = [float(circle.get("cy", 0)) for circle in circles]
    assert ys[0] < ys[1], "more TOPS is higher up"
    assert svg.get("aria-label") == "a title & more"
    assert roofline_plot(GPU.model_copy(update={"roofline": None}), "none") == ""


def test_the_report_shows_breakdowns_and_rooflines(full_report: Report) -> None:
    stages = tuple(stage.model_copy(update={"estimates": (GPU,)}) for stage in full_report.stages)
    report = full_report.model_copy(update={"stages": stages})
    assert len(rooflines(report)) == 2
    titles = [breakdown.title for breakdown in breakdowns(report)]
    assert titles[:2] == ["by kind: 00-dense on sim:a100, batch 1", "by layer: 00-dense on sim:a100, batch 1"]
    headers = [column.header for group in breakdowns(report)[1].groups for column in group.columns]
    assert {"us", "utilization", "bound", "uJ", "calibration", "expected error"} <= set(headers)
    assert "cycles" not in headers
    page = render_html(report)
    assert "fc1 &lt;b&gt;" in page
    assert "fc1 <b>" not in page
    assert page.count("Roofline: ") == 2
    assert "738 products" in page
