"""Consoles: data goes to stdout, messages and progress go to stderr."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0
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


class ConsoleProgress:
    """Progress bars on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)

    def say(self, message: str) -> None:
        """Print a line."""
        self.console.print(Text("· ", style="bold").append(message, style="not bold"))

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items of a loop and show its progress."""
        count = total if total is not None else _length(items)
        return self._bar(items, label, count) if self.console.is_terminal else self._lines(items, label, count)

    def _bar(self, items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:
            yield from bars.track(items, total=total, description=label)

    def _lines(self, items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
        started = printed = time.monotonic()
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - printed >= SECONDS_BETWEEN_LINES:
                printed = now
                left = f", about {(now - started) / done * (total - done):.0f} s left" if total and done else ""
                self.console.print(f"  {label}: {done}/{total or '?'}{left}", markup=False)
            yield item


def _length(items: Iterable[T]) -> int | None:
    return len(items) if isinstance(items, Sized) else None
