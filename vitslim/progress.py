"""Progress of long operations. The command line draws progress bars; library code is silent by default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Receives the progress of loops, and short messages."""

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items of a loop that may take more than two seconds; `total` is for iterables without a length."""
        ...

    def say(self, message: str) -> None:
        """Show a short message about the current operation."""
        ...


class Silent:
    """Progress that shows nothing, for tests and library use."""

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:  # noqa: ARG002
        """Yield the items unchanged."""
        return iter(items)

    def say(self, message: str) -> None:
        """Do nothing."""
