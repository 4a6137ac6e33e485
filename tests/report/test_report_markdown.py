"""The summary for continuous integration."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from vitslim.report import junit_xml, render_markdown
from vitslim.results import Report


def tables(text: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_every_row_has_as_many_cells_as_its_header(full_report: Report, bare_report: Report) -> None:
    for report in (full_report, bare_report):
        for table in tables(render_markdown(report)):
            assert len({len(cells(line)) for line in table}) == 1
            rows = 3 if "layer with 2:4 weights" in table[0] else len(report.stages)
            assert len(table) == rows + 2


def test_each_backend_tells_of_each_layer_with_two_four_weights(full_report: Report) -> None:
    text = render_markdown(full_report)
    (table,) = (one for one in tables(text) if "2:4 weights" in one[0])
    assert cells(table[2]) == ["blocks.0.attn.qkv", "selected", "selected"]
    assert cells(table[3])[2] == "eligible, not selected"
    assert cells(table[4]) == ["head", "not eligible: a FP16 weight of 10x192 is no multiple of 32x64", ""]
    assert "- torch:cuda: 2 selected, 1 not eligible" in text
    assert "- onnxruntime:cpu: ONNX Runtime does not tell" in text


def test_the_summary_has_headline_gates_and_simulated_header(full_report: Report) -> None:
    text = render_markdown(full_report)
    assert "**3.4x faster, 6.7x smaller, -0.8 points top-1" in text
    assert "- ✗ speedup_min onnxruntime:cpu: 3.43x, at least 4.00x" in text
    headers = cells(tables(text)[0][0])
    assert "ms<br>simulated, sim:systolic, batch 1" in headers
    assert not [header for header in headers if "measured" in header and "simulated" in header]


def test_hostile_names_are_escaped(full_report: Report) -> None:
    stage = full_report.stages[0].model_copy(update={"name": "a|b\n| c `<img src=x>` [x](y) **z**"})
    text = render_markdown(full_report.model_copy(update={"stages": (stage, *full_report.stages[1:])}))
    (row,) = [line for line in tables(text)[0] if "img" in line]
    assert "<img" not in text
    assert r"a\|b \| c \`&lt;img src=x&gt;\` \[x\](y) \*\*z\*\*" in row


def test_missing_values_leave_no_trace(bare_report: Report) -> None:
    for report in (bare_report, bare_report.model_copy(update={"stages": ()})):
        assert not re.search(r"\b(None|nan|inf)\b", render_markdown(report))


def test_junit_has_a_test_case_per_gate(full_report: Report, bare_report: Report) -> None:
    suite = ET.fromstring(junit_xml(full_report))
    assert (suite.get("tests"), suite.get("failures")) == ("4", "1")
    (failure,) = suite.iter("failure")
    assert failure.get("message") == "got 3.43x, expected at least 4.00x"
    assert ET.fromstring(junit_xml(bare_report)).get("tests") == "0"


def test_junit_of_hostile_names_is_well_formed(full_report: Report) -> None:
    gate = full_report.gates[0].model_copy(update={"name": '<a>&"\x00\x1b'})
    ET.fromstring(junit_xml(full_report.model_copy(update={"gates": (gate,), "name": "\x08<"})))
