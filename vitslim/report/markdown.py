"""Render a report for continuous integration: a Markdown summary, and the gates as JUnit XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator

from vitslim.report.sections import sections
from vitslim.report.tables.columns import (
    Group,
    accuracy_group,
    datasets,
    measured_group,
    measured_settings,
    memory_group,
    simulated_group,
    simulated_settings,
    size_group,
    stage_group,
    without,
)
from vitslim.report.tables.headline import headline
from vitslim.report.tables.two_four_table import report_uses, two_four_group
from vitslim.report.wording import gate_line, plain
from vitslim.results import Report


def render_markdown(report: Report) -> str:
    """Return a summary in GitHub-flavored Markdown: headline, stages, further latencies, gates and warnings."""
    lines = [f"### {_escaped(report.name)}: {_escaped(report.model)} on {_escaped(report.dataset)}", ""]
    if line := headline(report):
        lines += [f"**{_escaped(line)}**", ""]
    measured = [measured_group(report, setting) for setting in measured_settings(report)]
    simulated = [without(simulated_group(report, setting), "cycles", "mJ") for setting in simulated_settings(report)]
    accuracies = [accuracy_group(report, name) for name in datasets(report)]
    names = stage_group(report)
    lines += _table([names, *accuracies, size_group(report), *measured[:1], *simulated[:1]])
    memory = [one for setting in measured_settings(report) if (one := memory_group(report, setting)).columns]
    if measured[1:] or simulated[1:] or memory:
        more = _table([Group((), "", names.columns[:1]), *measured[1:], *simulated[1:], *memory])
        lines += [
            "",
            "<details><summary>Other batch sizes and threads, and memory</summary>",
            "",
            *more,
            "",
            "</details>",
        ]
    if group := two_four_group(report_uses(report)):
        lines += ["", "<details><summary>Layers with 2:4 weights</summary>", "", *_table([group]), "", "</details>"]
    for section in sections(report):
        lines += ["", f"**{_escaped(section.title)}**", ""]
        lines += [f"- {entry.mark}{' ' if entry.mark else ''}{_escaped(entry.text)}" for entry in section.entries]
    return "\n".join(lines) + "\n"


def junit_xml(report: Report) -> str:
    """Return the gates as JUnit XML: one test case per gate."""
    failures = sum(not gate.passed for gate in report.gates)
    suite = ET.Element(
        "testsuite", name=f"vitslim {plain(report.name)}", tests=str(len(report.gates)), failures=str(failures)
    )
    for gate in report.gates:
        case = ET.SubElement(suite, "testcase", classname=f"{plain(report.name)}.gates", name=plain(gate.name))
        if not gate.passed:
            line = gate_line(gate)
            ET.SubElement(case, "failure", message=f"got {line.value}, expected {line.limit}")
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _table(groups: Iterable[Group]) -> Iterator[str]:
    columns = [(group, column) for group in groups for column in group.columns]
    yield _line(_header(group, column.header) for group, column in columns)
    yield _line("---:" if column.numeric else "---" for _, column in columns)
    for cells in zip(*(column.cells for _, column in columns), strict=True):
        yield _line(_escaped(cell.text) for cell in cells)


def _header(group: Group, header: str) -> str:
    """Return the quantity and its conditions: `speedup`, `measured, onnxruntime:cpu, batch 1, 1 thread`."""
    return "<br>".join(_escaped(text) for text in (header, ", ".join(group.titles)) if text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Escape text for Markdown, also in table cells; names of folders and models are untrusted."""
    text = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~#@])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
