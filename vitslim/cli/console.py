"""Consoles: data goes to stdout."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 500


def plain_table(title: str | None, left: tuple[str, ...], right: tuple[str, ...] = ()) -> Table:
    """Return an empty table without lines: the columns `left` are left-aligned, the columns `right` right-aligned."""
    heading = Text(title, no_wrap=True, overflow="ignore") if title else None  # may be wider than the columns
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in left:
        table.add_column(column)
    for column in right:
        table.add_column(column, justify="right")
    return table


def stdout() -> Console:
    """Return the console for data."""
    return Console(highlight=False)


def wide_stdout() -> Console:
    """Return the console for wide tables, whose cells only wrap on a terminal."""
    console = stdout()
    if not console.is_terminal:
        console.width = WIDE
    return console
