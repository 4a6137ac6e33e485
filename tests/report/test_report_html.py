"""report.html: self-contained, escaped, and measured apart from simulated."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from vitslim.report import render_html
from vitslim.results import Report

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>&\x1b[31m'


class Page(HTMLParser):
    """A parsed page: balanced tags are checked, tables, texts and attributes are kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[tuple[str, str, int]]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th") and "data-source" in attributes:
            cell = (tag, attributes["data-source"] or "", int(attributes.get("colspan") or 1))
            self.tables[-1][-1].append(cell)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += f"{data} "


@pytest.fixture
def hostile_report(full_report: Report) -> Report:
    """Every text that comes from outside is an attack."""
    stages = tuple(
        stage.model_copy(
            update={
                "name": f"{index}{HOSTILE}",
                "method": HOSTILE,
                "key": HOSTILE,
                "metrics": {HOSTILE: 1.0},
                "accuracies": tuple(
                    a.model_copy(update={"dataset": f"{a.dataset}{HOSTILE}"}) for a in stage.accuracies
                ),
                "estimates": tuple(
                    e.model_copy(update={"backend": HOSTILE, "calibration": HOSTILE, "settings": {HOSTILE: HOSTILE}})
                    for e in stage.estimates
                ),
                "measurements": tuple(m.model_copy(update={"backend": HOSTILE}) for m in stage.measurements),
                "changes": tuple(c.model_copy(update={"layer": HOSTILE, "result": HOSTILE}) for c in stage.changes),
                "skipped": tuple(c.model_copy(update={"layer": HOSTILE, "reason": HOSTILE}) for c in stage.skipped),
            }
        )
        for index, stage in enumerate(full_report.stages)
    )
    gates = tuple(gate.model_copy(update={"name": f"{gate.name}{HOSTILE}"}) for gate in full_report.gates)
    environment = full_report.environment.model_copy(update={"device": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    return full_report.model_copy(
        update={
            "name": HOSTILE,
            "model": HOSTILE,
            "dataset": HOSTILE,
            "created": HOSTILE,
            "stages": stages,
            "final_accuracies": stages[-1].accuracies,
            "environment": environment,
            "gates": gates,
            "warnings": (HOSTILE,),
            "parity": {HOSTILE: 1.0},
            "files": {HOSTILE: HOSTILE},
            "assumptions": tuple(a.model_copy(update={"value": HOSTILE}) for a in full_report.assumptions),
        }
    )


def test_untrusted_text_is_escaped_everywhere(hostile_report: Report) -> None:
    text = render_html(hostile_report)
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "iframe", "object", "link"}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "\x1b" not in text
    assert "<script>alert(1)</script>" in page.text  # read as text, not run


def test_page_is_self_contained_and_small(full_report: Report) -> None:
    text = render_html(full_report)
    assert len(text.encode()) < 150_000
    for _, attributes in Page(text).tags:
        for key in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(key) or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "default-src 'none'" in text


def test_the_page_has_light_dark_phone_and_print_styles(full_report: Report) -> None:
    text = render_html(full_report)
    for needed in ("prefers-color-scheme: dark", "max-width: 640px", "@media print", 'name="viewport"'):
        assert needed in text


def test_measured_and_simulated_never_share_a_column(full_report: Report) -> None:
    tables = [table for table in Page(render_html(full_report)).tables if any(table)]
    assert len(tables) >= 5
    seen = set()
    for table in tables:
        columns: dict[int, set[str]] = {}
        for row in table:
            place = 0
            for _, source, span in row:
                for column in range(place, place + span):
                    columns.setdefault(column, set()).add(source)
                place += span
        widths = {sum(span for *_, span in row) for row in table}
        assert len(widths) == 1, "every row has as many cells as the header"
        for sources in columns.values():
            assert not {"measured", "simulated"} <= sources
            seen |= sources
    assert {"measured", "simulated", "counted"} <= seen


def test_plots_keep_measured_and_simulated_apart(full_report: Report) -> None:
    plots = re.findall(r"<svg.*?</svg>", render_html(full_report), re.DOTALL)
    assert len(plots) == 2 + 4 + 2  # accuracy, size; two batch sizes on two thread counts; two simulated batch sizes
    for plot in plots:
        classes = {element.get("class", "") for element in ET.fromstring(plot).iter()}
        assert not ("bar measured" in classes and "bar simulated" in classes)


def test_every_result_is_on_the_page(full_report: Report) -> None:
    page = Page(render_html(full_report)).text
    for stage in full_report.stages:
        assert stage.key in page
        assert all(f"{estimate.cycles:,}" in page for estimate in stage.estimates)
        assert all(f"{accuracy.metrics['top1']:.1%}".replace("%", " %") in page for accuracy in stage.accuracies)
        assert all(note.layer in page and note.reason in page for note in (*stage.changes, *stage.skipped))
    for text in (*full_report.files.values(), *full_report.warnings, *full_report.environment.versions.values()):
        assert text in page
    assert "uncalibrated" in page
    assert "closed form, exact against SCALE-Sim v3" in page
    assert "baseline" in page
    assert "00-dense (FP32)" in page


def test_gates_are_marked_passed_or_failed(full_report: Report) -> None:
    page = Page(render_html(full_report)).text
    assert page.count("✓ pass") == 3
    assert page.count("✗ fail") == 1


def test_missing_values_leave_no_trace(bare_report: Report) -> None:
    nothing = bare_report.model_copy(update={"stages": ()})
    for report in (bare_report, nothing):
        page = Page(render_html(report)).text
        assert not re.search(r"\b(None|nan|inf|Undefined)\b", page)
        for absent in ("Gates", "measured", "simulated", "Warnings", "Assumed", "Files"):
            assert absent not in page


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = "import sys, vitslim.report; print([m for m in ('torch', 'timm', 'numpy', 'jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
