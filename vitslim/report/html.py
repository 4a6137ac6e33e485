"""Render a report as one HTML file without scripts or external resources, with a light, a dark and a print style."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from vitslim.report import accelerator_tables, wording
from vitslim.report.pictures import bits_plot, breakdowns, figures, token_table, width_plot
from vitslim.report.tables import (
    columns,
    headline,
    off_the_shelf,
    profile_table,
    stage_details,
    two_four_table,
)
from vitslim.report.tables.columns import Group, Source
from vitslim.results import Report
from vitslim.tasks import EXPLANATIONS
from vitslim.units import format_duration

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE = "report.html.j2"


def render_html(report: Report) -> str:
    """Return a self-contained HTML page. All text is escaped, because names of models and folders are untrusted."""
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            report=report,
            facts=_facts(report),
            overview=_overview(report),
            figures=figures.overview_figures(report),
            widths=tuple(width_plot.width_figures(report)),
            further=partial(figures.further_figures, report),
            accuracies=_accuracies(report),
            measured=_latencies(report, "measured"),
            simulated=_latencies(report, "simulated"),
            costs=(_names(report), columns.cost_group(report)),
            details=stage_details.stage_details(report),
            breakdowns=breakdowns.breakdowns(report),
            rooflines=breakdowns.rooflines(report),
            two_four=two_four_table.two_four_group(two_four_table.report_uses(report)),
            two_four_lines=two_four_table.two_four_lines(two_four_table.report_uses(report)),
            profiles=profile_table.profile_tables(report),
            bits=bits_plot.bits_figures(report),
            tokens=token_table.token_table(report),
            approximate_accuracies=accelerator_tables.accuracy_groups(report),
            accelerators=accelerator_tables.accelerator_tables(report),
            simulators=wording.simulators(report),
            neighbors=off_the_shelf.neighbor_lines(report),
            neighbors_source=off_the_shelf.SOURCE,
            gates=tuple(map(wording.gate_line, report.gates)),
            verdict=wording.gates_verdict(report.gates),
            failed=any(not gate.passed for gate in report.gates),
            baseline=wording.baseline(report),
            explanation=EXPLANATIONS[report.task],
        )
    )


def typographic(text: str) -> str:
    """Return the text with typographic minus and times signs: `-0.3` and `3.1x` become `−0.3` and `3.1×`."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return re.sub(r"(?<=\d)x(?!\w)", "×", text)


def _environment() -> Environment:
    # Imported here, because most commands render no page and should start fast.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vitslim.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": wording.plain, "typographic": typographic, "duration": format_duration}
    environment.globals |= {"counted": wording.counted, "provenance": wording.estimate_provenance}
    return environment


def _facts(report: Report) -> tuple[headline.Fact, ...]:
    found = (
        headline.latency_fact(report),
        headline.size_fact(report),
        headline.accuracy_fact(report),
        headline.macs_fact(report),
        headline.simulated_fact(report),
    )
    return tuple(fact for fact in found if fact)


def _names(report: Report) -> Group:
    return Group((), "", columns.stage_group(report).columns[:1])


def _overview(report: Report) -> tuple[Group, ...]:
    return (
        columns.stage_group(report),
        *(columns.accuracy_group(report, name) for name in columns.datasets(report)[:1]),
        columns.size_group(report),
        *(columns.measured_group(report, setting) for setting in columns.measured_settings(report)[:1]),
        *(
            columns.without(columns.simulated_group(report, setting), "cycles", "mJ")
            for setting in columns.simulated_settings(report)[:1]
        ),
    )


def _accuracies(report: Report) -> tuple[Group, ...]:
    names = columns.datasets(report)
    return (_names(report), *(columns.accuracy_group(report, name, counts=True) for name in names)) if names else ()


def _latencies(report: Report, source: Source) -> tuple[Group, ...]:
    if source == "measured":
        settings = columns.measured_settings(report)
        groups = [columns.measured_group(report, setting) for setting in settings]
        groups += [one for setting in settings if (one := columns.memory_group(report, setting)).columns]
    else:
        groups = [columns.simulated_group(report, setting) for setting in columns.simulated_settings(report)]
    return (_names(report), *groups) if groups else ()
