"""Print a report on a terminal: headline, tables with one row per stage, and lists of gates, warnings and files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, OverflowMethod
from rich.table import Table
from rich.text import Text

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
from vitslim.report.wording import plain
from vitslim.results import Report

GAP = 2
"""Spaces between two columns."""
CELL_WIDTH = 24
"""Longer texts are truncated, so that each row of a table is one line."""
STYLES = {"": "", "good": "green", "bad": "red", "warning": "yellow", "weak": "dim"}
HEADER = -1
"""Index of the header among the rows of a group."""
ASCII = {"±": "+/-", "→": "->", "…": "...", "✓": "ok", "✗": "FAIL", "–": "-", "×": "x"}


def render_terminal(report: Report, console: Console, folder: Path | None = None) -> None:
    """Print the report; `folder` is the folder of its files, if it has any.

    Columns that exceed the width of the console go into further tables, each again with one row per stage.
    """
    _say(console, f"{report.name}: {report.model} on {report.dataset}", "bold")
    if line := headline(report):
        _say(console, line, "bold" if any(not gate.passed for gate in report.gates) else "bold green")
    stages = _printable(stage_group(report), console)
    groups = [_printable(group, console) for group in _ranked_groups(report) if group.columns]
    for table in _packed(stages, groups, console.width):
        console.print()
        _print_table(console, table)
    for section in sections(report, folder):
        console.print()
        _say(console, section.title, "bold")
        for entry in section.entries:
            _say(console, entry.text, STYLES[entry.tone], entry.mark or "  ")


def _ranked_groups(report: Report) -> list[Group]:
    """Return the groups of columns by importance: the first table gets as many as fit."""
    accuracies = [accuracy_group(report, name) for name in datasets(report)]
    measured = [measured_group(report, setting) for setting in measured_settings(report)]
    # Cycles and energy are left out to save width; report.html has them.
    simulated = [without(simulated_group(report, setting), "cycles", "mJ") for setting in simulated_settings(report)]
    first = [*accuracies[:1], size_group(report), *measured[:1], *simulated[:1]]
    memory = [memory_group(report, setting) for setting in measured_settings(report)]
    return [*first, *accuracies[1:], *measured[1:], *simulated[1:], *memory]


def _printable(group: Group, console: Console) -> Group:
    """Return the group with truncated texts that the console can encode, without control characters."""

    def short(text: str) -> str:
        text = _encodable(text, console)
        return text if cell_len(text) <= CELL_WIDTH else set_cell_size(text, CELL_WIDTH - 3) + "..."

    columns = (
        replace(c, header=short(c.header), cells=tuple(replace(cell, text=short(cell.text)) for cell in c.cells))
        for c in group.columns
    )
    return Group(tuple(map(short, group.titles)), group.source, tuple(columns))


def _packed(stages: Group, groups: list[Group], width: int) -> Iterator[list[Group]]:
    """Yield tables of at most `width` characters where possible, each with the names of the stages on the left."""
    names = Group((), "", stages.columns[:1])
    parts = [part for group in groups for part in _parts(group, width - _width(names) - GAP)]
    row = [stages if parts and _width(stages) + GAP + _width(parts[0]) <= width else names]
    for group in parts:
        if len(row) > 1 and sum(_width(one) + GAP for one in row) + _width(group) > width:
            yield row
            row = [names]
        row.append(group)
    yield row


def _parts(group: Group, width: int) -> list[Group]:
    """Return the group, or a group for each of its columns when it is too wide."""
    return [group] if _width(group) <= width else [Group(group.titles, group.source, (c,)) for c in group.columns]


def _width(group: Group) -> int:
    return max(map(cell_len, [*group.titles, _row(group, HEADER).plain]))


def _row(group: Group, index: int) -> Text:
    """Return one row of a group as a line."""
    line = Text()
    for number, column in enumerate(group.columns):
        width = max(map(cell_len, [column.header, *(cell.text for cell in column.cells)]))
        text = column.header if index == HEADER else column.cells[index].text
        padding = " " * (width - cell_len(text))
        style = "bold" if index == HEADER else STYLES[column.cells[index].tone]
        line.append(" " * GAP if number else "")
        line.append(padding + text if column.numeric else text + padding, style)
    return line


def _print_table(console: Console, groups: list[Group]) -> None:
    overflow: OverflowMethod = "crop" if console.options.ascii_only else "ellipsis"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for group in groups:
        header = Text("".join(f"{title}\n" for title in group.titles), STYLES["weak"])
        table.add_column(header + _row(group, HEADER), vertical="bottom", no_wrap=True, overflow=overflow)
    for index in range(len(groups[0].columns[0].cells)):
        table.add_row(*(_row(group, index) for group in groups))
    console.print(table)


def _say(console: Console, line: str, style: str = "", mark: str = "") -> None:
    """Print a line; it wraps with a hanging indent on a terminal, and does not wrap anywhere else."""
    text, mark = Text(_encodable(line, console), style), _encodable(mark, console)
    if not console.is_terminal or not mark:
        console.print(Text(f"{mark} " if mark else "") + text, soft_wrap=not console.is_terminal)
        return
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark, style), text)
    console.print(grid)


def _encodable(text: str, console: Console) -> str:
    """Return the text without control characters, in characters that the console can encode."""
    text = plain(text)
    if not console.options.ascii_only:
        return text
    for character, replacement in ASCII.items():
        text = text.replace(character, replacement)
    return text.encode("ascii", "replace").decode("ascii")
