"""Messages and progress of commands, on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from vitslim.progress import item_count

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0
LOSS = "loss"


@dataclass
class _Loop:
    """A loop that is shown."""

    label: str
    images: int
    """Images of each item; 0 if unknown."""
    values: dict[str, float] = field(default_factory=dict)
    """Last values of a training."""

    def figures(self, items_per_s: float | None) -> str:
        """Return `35 images/s, loss 2.31`, as far as it is known."""
        rate = (items_per_s or 0) * self.images
        parts = [f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"] if rate else []
        return ", ".join(parts + ([f"loss {self.values[LOSS]:.4g}"] if LOSS in self.values else []))


class _FiguresColumn(ProgressColumn):
    """Images a second and loss of a loop."""

    def __init__(self, loop: _Loop) -> None:
        super().__init__()
        self.loop = loop

    def render(self, task: Task) -> Text:
        """Return the figures of the task."""
        return Text(self.loop.figures(task.finished_speed or task.speed), style="progress.data.speed")


class ConsoleProgress:
    """Progress bars on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        """`console`: where it is shown; stderr by default."""
        self.console = console or Console(stderr=True, highlight=False)
        self.loops: list[_Loop] = []

    def say(self, message: str) -> None:
        """Print a line."""
        self.console.print(Text("· ", style="bold").append(message, style="not bold"))

    def warn(self, message: str) -> None:
        """Print a line that begins with `warning`."""
        self.console.print(Text("· ", style="bold").append("warning: ", style="yellow").append(message, "not bold"))

    def record(self, label: str, step: int, values: Mapping[str, float]) -> None:  # noqa: ARG002
        """Show the loss beside the progress of the loop of this label."""
        for loop in self.loops:
            if loop.label == label:
                loop.values = dict(values)

    def emit(self, event: str, values: Mapping[str, object]) -> None:
        """Do nothing: events are for programs."""

    def track(self, items: Iterable[T], label: str, total: int | None = None, images: int = 0) -> Iterator[T]:
        """Yield the items of a loop and show its progress."""
        count = item_count(items, total)
        loop = _Loop(label, images)
        self.loops.append(loop)
        try:
            yield from self._bar(items, loop, count) if self.console.is_terminal else self._lines(items, loop, count)
        finally:
            self.loops.remove(loop)

    def _bar(self, items: Iterable[T], loop: _Loop, total: int | None) -> Iterator[T]:
        columns = (
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            _FiguresColumn(loop),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:
            yield from bars.track(items, total=total, description=loop.label)

    def _lines(self, items: Iterable[T], loop: _Loop, total: int | None) -> Iterator[T]:
        started = printed = time.monotonic()
        done = 0
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - printed >= SECONDS_BETWEEN_LINES:
                printed = now
                speed = done / (now - started)
                left = f"about {(total - done) / speed:.0f} s left" if total and done else ""
                self._line(loop, f"{done}/{total or '?'}", loop.figures(speed), left)
            yield item
        seconds = time.monotonic() - started
        if printed > started:
            self._line(loop, f"{done + 1}/{total or done + 1}", loop.figures((done + 1) / seconds), f"{seconds:.0f} s")

    def _line(self, loop: _Loop, *parts: str) -> None:
        self.console.print(f"  {loop.label}: {', '.join(filter(None, parts))}", markup=False, soft_wrap=True)
