"""The report on a terminal: a headline, one row a stage, then everything a person must know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitslim.report.columns import (
    Cell,
    Column,
    Group,
    accuracy_group,
    datasets,
    measured_group,
    measured_settings,
    simulated_group,
    simulated_settings,
    size_group,
    stage_group,
)
from vitslim.report.headline import headline
from vitslim.report.wording import baseline, counted, gate_line, gates_verdict, plain, reasons
from vitslim.results import Report

PADDING = 2
"""Blanks between two columns."""
STAGE_WIDTH = 22
"""A longer stage name is cut: the name is the key of the row and must stay on one line."""
TONES = {"": "", "good": "green", "bad": "red"}
SHORT = {"agreement": "agree", "ms ±IQR": "ms", "speed-up": "speed"}


def render_terminal(report: Report, console: Console, folder: Path | None = None) -> None:
    """Print the report; `folder` is where its files lie, when they do.

    Columns that do not fit beside each other go into a further table below, each again with one row a stage.
    """
    _say(console, Text(plain(f"{report.name}: {report.model} on {report.dataset}"), style="bold"))
    if line := headline(report):
        _say(console, Text(plain(line), style="bold green"))
    for groups in _packed(_groups(report), console.width):
        console.print()
        console.print(_table(report, groups, console))
    for title, lines in _sections(report, folder):
        console.print()
        _say(console, Text(title, style="bold"))
        for line in lines:
            _say(console, line)


def _groups(report: Report) -> list[Group]:
    """Most wanted first: what fits goes into the first table."""
    accuracies = [accuracy_group(report, name) for name in datasets(report)]
    measured = [measured_group(report, setting) for setting in measured_settings(report)]
    simulated = [_without(simulated_group(report, s), "ms") for s in simulated_settings(report)]
    first = [*accuracies[:1], size_group(report), *measured[:1], *simulated[:1]]
    return [group for group in (*first, *accuracies[1:], *measured[1:], *simulated[1:]) if group.columns]


def _without(group: Group, header: str) -> Group:
    return Group(group.title, group.source, tuple(c for c in group.columns if c.header != header))


def _packed(groups: list[Group], width: int) -> Iterator[list[Group]]:
    """Groups in tables no wider than `width`; the stage names stand at the left of each."""
    row: list[Group] = []
    for group in groups:
        if row and STAGE_WIDTH + sum(map(_width, [*row, group])) > width:
            yield row
            row = []
        row.append(group)
    if row or not groups:
        yield row


def _width(group: Group) -> int:
    return sum(max(map(cell_len, [*_header(group, c).split("\n"), *(x.text for x in c.cells)])) + PADDING for c in group.columns)
