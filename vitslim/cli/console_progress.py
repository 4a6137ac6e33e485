"""Messages and progress of commands, on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


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
