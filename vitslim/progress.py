"""Progress of long operations. The command line draws progress bars; library code is silent by default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Protocol, TypeVar

T = TypeVar("T")
STAGE_STARTED, STAGE_ENDED = "stage_started", "stage_ended"
"""Events around a stage."""


def item_count(items: Iterable[object], total: int | None) -> int | None:
    """Return the number of items of a loop: `total`, else their length; None if it is unknown."""
    if total is not None:
        return total
    return len(items) if isinstance(items, Sized) else None


class Progress(Protocol):
    """Receives the progress of loops, short messages, measured values, and events for programs."""

    def track(self, items: Iterable[T], label: str, total: int | None = None, images: int = 0) -> Iterator[T]:
        """Yield the items of a loop that may take more than two seconds.

        `total` is for iterables without a length; `images`, the number of images of an item, gives the images a second.
        """
        ...

    def say(self, message: str) -> None:
        """Show a short message about the current operation."""
        ...

    def warn(self, message: str) -> None:
        """Show a warning."""
        ...

    def record(self, label: str, step: int, values: Mapping[str, float]) -> None:
        """Receive the values of a training after a step, which counts from 1, by name; `loss` is one of them."""
        ...

    def emit(self, event: str, values: Mapping[str, object]) -> None:
        """Receive an event for programs. Its values can be written as JSON."""
        ...


class Silent:
    """Progress that shows nothing, for tests and library use."""

    def track(self, items: Iterable[T], label: str, total: int | None = None, images: int = 0) -> Iterator[T]:  # noqa: ARG002
        """Yield the items unchanged."""
        return iter(items)

    def say(self, message: str) -> None:
        """Do nothing."""

    def warn(self, message: str) -> None:
        """Do nothing."""

    def record(self, label: str, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def emit(self, event: str, values: Mapping[str, object]) -> None:
        """Do nothing."""


class Forwarding:
    """Progress that passes everything on; subclasses also write it elsewhere."""

    def __init__(self, inner: Progress) -> None:
        """`inner` receives everything."""
        self.inner = inner

    def track(self, items: Iterable[T], label: str, total: int | None = None, images: int = 0) -> Iterator[T]:
        """Pass the items on."""
        return self.inner.track(items, label, total, images)

    def say(self, message: str) -> None:
        """Pass the message on."""
        self.inner.say(message)

    def warn(self, message: str) -> None:
        """Pass the warning on."""
        self.inner.warn(message)

    def record(self, label: str, step: int, values: Mapping[str, float]) -> None:
        """Pass the values on."""
        self.inner.record(label, step, values)

    def emit(self, event: str, values: Mapping[str, object]) -> None:
        """Pass the event on."""
        self.inner.emit(event, values)
