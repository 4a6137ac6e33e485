"""Lists of a report below its tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitslim.report.metric_format import format_metric
from vitslim.report.tables.columns import measured_settings, measurement, metric_keys
from vitslim.report.tables.off_the_shelf import SOURCE, neighbor_lines
from vitslim.report.tables.profile_table import profile_lines
from vitslim.report.tables.two_four_table import report_uses, two_four_lines
from vitslim.report.wording import (
    baseline,
    counted,
    estimate_provenance,
    gate_line,
    gates_verdict,
    reasons,
    simulators,
)
from vitslim.results import RESOLVED_KEY, Report
from vitslim.tasks import describe_metric
from vitslim.units import format_percent


@dataclass(frozen=True)
class Entry:
    """One line of a section."""

    text: str
    mark: str = ""
    tone: Literal["", "good", "bad", "warning", "weak"] = ""


@dataclass(frozen=True)
class Section:
    """A title and the lines below it; never empty."""

    title: str
    entries: tuple[Entry, ...]


def sections(report: Report, folder: Path | None = None) -> tuple[Section, ...]:
    """Return all sections that have entries: gates, warnings, resolved keys, the exported file, and so on."""
    verdict = gates_verdict(report.gates)
    skipped = sum(len(stage.skipped) for stage in report.stages)
    found = (
        Section(verdict[:1].upper() + verdict[1:], tuple(_gates(report))),
        Section("Warnings", tuple(Entry(text, "!", "warning") for text in report.warnings)),
        Section("Data", tuple(map(Entry, report.data))),
        Section("Resolved keys", tuple(_resolved(report))),
        Section("Exported file", tuple(_exported(report))),
        Section("Accuracy on simulated accelerators", tuple(_accelerators(report))),
        Section("Kernels of 2:4 weights", tuple(map(Entry, two_four_lines(report_uses(report))))),
        Section("Time by kind of operator, measured", tuple(map(Entry, profile_lines(report)))),
        Section("Smaller timm models, published", tuple(_off_the_shelf(report))),
        Section(f"Skipped: {counted(skipped, 'layer')}", tuple(_skipped(report))),
        Section("Assumed values without a source", tuple(_assumptions(report))),
        Section("Provenance", tuple(_provenance(report))),
        Section(f"Files in {folder}" if folder else "Files", tuple(_files(report, folder))),
    )
    return tuple(section for section in found if section.entries)


def _gates(report: Report) -> Iterator[Entry]:
    for gate in map(gate_line, report.gates):
        text = f"{gate.name}: {gate.value}, {gate.limit}"
        yield Entry(text, "✓", "good") if gate.passed else Entry(text, "✗", "bad")


def _resolved(report: Report) -> Iterator[Entry]:
    for stage in report.stages:
        for note in stage.changes:
            if note.layer == RESOLVED_KEY:
                yield Entry(f"{stage.name}: {note.result}: {note.reason}")


def _exported(report: Report) -> Iterator[Entry]:
    for result in report.final_accuracies:
        keys = metric_keys([result])
        values = [f"{describe_metric(key).words} {format_metric(key, result.metrics[key])}" for key in keys]
        first = f"{values[0]} of {result.n:,} images" if values else f"{result.n:,} images"
        yield Entry(f"{result.dataset}: {', '.join([first, *values[1:]])}")
    for name, value in report.parity.items():
        yield Entry(f"{name} = {value:.4g}")


def _accelerators(report: Report) -> Iterator[Entry]:
    for stage in report.stages:
        for found in stage.accelerators:
            for a in found.accuracies:
                top1 = ""
                if a.top1 is not None and a.exact_top1 is not None:
                    points = f"{100 * (a.top1 - a.exact_top1):+.1f} points by its approximations"
                    top1 = f"top-1 {format_percent(a.top1)}, {points}, "
                yield Entry(
                    f"{stage.name} on {found.backend}, simulated: {a.dataset}: {top1}"
                    f"agreement {format_percent(a.agreement)}, {a.n:,} images"
                )


def _off_the_shelf(report: Report) -> Iterator[Entry]:
    lines = neighbor_lines(report)
    yield from map(Entry, lines)
    if lines:
        yield Entry(SOURCE, tone="weak")


def _skipped(report: Report) -> Iterator[Entry]:
    for stage in report.stages:
        if stage.skipped:
            why = "; ".join(f"{number} × {reason}" for reason, number in reasons(stage.skipped))
            yield Entry(f"{stage.name}: {why}")
    if any(stage.skipped for stage in report.stages):
        yield Entry("report.html lists each skipped layer, report.json has them in stages[].skipped", tone="weak")


def _assumptions(report: Report) -> Iterator[Entry]:
    for assumption in report.assumptions:
        yield Entry(f"{assumption.key} = {assumption.value}")


def _provenance(report: Report) -> Iterator[Entry]:
    versions = ", ".join(f"{name} {version}" for name, version in report.environment.versions.items())
    device = f"{report.environment.device}, {counted(report.environment.cores, 'core')}"
    yield Entry("; ".join(filter(None, (device, versions, f"seed {report.seed}", report.created))), tone="weak")
    if settings := measured_settings(report):
        runs = [m.n for s in report.stages for setting in settings if (m := measurement(s, setting))]
        span = f"{min(runs)}" if min(runs) == max(runs) else f"{min(runs)} to {max(runs)}"
        over = f"speedup over {baseline(report)} with the same backend, batch and threads"
        yield Entry(f"measured: median ± interquartile range of {span} runs; {over}", tone="weak")
    for found in simulators(report):
        yield Entry(f"{found.backend}, simulated: {estimate_provenance(found)}", tone="weak")


def _files(report: Report, folder: Path | None) -> Iterator[Entry]:
    for name, digest in report.files.items():
        yield Entry(f"{name}  sha256 {digest[:16]}")
    if folder:
        yield Entry(f"open {folder / 'report.html'} for plots and all details")
