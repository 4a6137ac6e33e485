"""The report on a terminal: no line wraps into the next column, plain text anywhere but on a terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from vitslim.report import render_terminal
from vitslim.results import Report


def printed(report: Report, width: int = 100, folder: Path | None = None, **options: bool) -> str:
    file = io.StringIO()
    render_terminal(report, Console(file=file, width=width, **options), folder)
    return file.getvalue()


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"(stage|0\d-)", line) and ": " not in line]


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_tables_fit_the_width_and_have_every_value(full_report: Report, width: int) -> None:
    lines = table_lines(printed(full_report, width))
    assert max(map(cell_len, lines)) <= width
    assert "…" not in "".join(lines)
    words = " ".join(lines).split()
    for expected in ("5.72", "432", "22.94", "72.1", "91.4", "0.546", "1.69", "1.75x", "12.41"):
        assert expected in words


def test_wide_terminal_shows_everything_important_in_one_row(full_report: Report) -> None:
    row = next(line for line in table_lines(printed(full_report, 120)) if line.startswith("05-export"))
    for expected in (
        "onnx",
        "71.3 %",
        "-0.8",
        "91.4 %",
        "3.03 M",
        "432 M",
        "3.40 MB",
        "3.58 ±0.08",
        "3.43x",
        "0.212",
    ):
        assert expected in row


def test_every_value_is_below_its_header(full_report: Report) -> None:
    header, *rows = table_lines(printed(full_report, 120))[:7]
    end = header.index("MACs") + len("MACs")
    assert {row[:end].split()[-1] for row in rows} <= {"G", "M"}
    assert {cell_len(row.rstrip()) for row in rows} == {cell_len(header.rstrip())}


def test_simulated_latencies_have_a_column_of_their_own(full_report: Report) -> None:
    lines = printed(full_report, 120).splitlines()
    top = next(line for line in lines if "simulated" in line)
    header = next(line for line in lines if line.startswith("stage"))
    assert top.index("measured") < header.index("ms ±IQR") + len("ms ±IQR") <= top.index("simulated")
    assert header.rindex("ms") + 2 > top.index("simulated")


def test_output_is_plain_text_outside_of_a_terminal(full_report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    text = printed(full_report, 80, Path("runs/a folder with a very long name that no line of eighty columns can hold"))
    assert "\x1b" not in text
    assert "runs/a folder with a very long name that no line of eighty columns can hold/report.html" in text


def test_no_color_is_respected(full_report: Report) -> None:
    colored = printed(full_report, force_terminal=True, color_system="standard")  # type: ignore[arg-type]
    plain = printed(full_report, force_terminal=True, no_color=True, color_system="standard")  # type: ignore[arg-type]
    assert re.search(r"\x1b\[3[0-9]m", colored)
    assert not re.search(r"\x1b\[(3|4)[0-9]m", plain)


def test_headline_gates_warnings_and_files_are_printed(full_report: Report) -> None:
    text = printed(full_report, 200, Path("runs/x"))
    assert "3.4x faster, 6.7x smaller, -0.8 points top-1 (onnxruntime:cpu, batch 1, 1 thread, AMD EPYC 9R14)" in text
    assert "✓ size_ratio_min: 6.74x, at least 4.00x" in text
    assert "✗ speedup_min onnxruntime:cpu: 3.43x, at least 4.00x" in text
    assert "Skipped: 13 layers" in text
    assert "12 × attention matmuls stay in FP32" in text
    assert "stages.3.distill.temperature = 1.0" in text
    assert "Files in runs/x" in text
    for warning in full_report.warnings:
        assert f"! {warning}" in text


def test_missing_values_leave_no_trace(bare_report: Report) -> None:
    for report in (bare_report, bare_report.model_copy(update={"stages": ()})):
        text = printed(report)
        assert not re.search(r"\b(None|nan|inf)\b", text)
        for absent in ("Gates", "Warnings", "Skipped", "Assumed", "Files", "faster", "speedup"):
            assert absent not in text


def test_control_characters_in_names_are_removed(full_report: Report) -> None:
    stage = full_report.stages[0].model_copy(update={"name": "[red]x[/red]\x1b]0;owned\x07", "method": "\x1b[2J"})
    text = printed(full_report.model_copy(update={"name": "\x1b[31mred", "stages": (stage,)}))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x[/red]" in text


def test_a_terminal_without_unicode_gets_ascii(full_report: Report) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    render_terminal(full_report, Console(file=file, width=60))
    file.seek(0)
    text = file.read()
    assert "FAIL speedup_min" in text
    assert "12.41 +/-0.26" in text
