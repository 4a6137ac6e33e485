"""How a long job tells a person how far it is. The command line draws bars; everything else stays silent by default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Receives progress of long loops and short messages."""

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items of a loop that may take more than two seconds; `total` when it has no length."""
        ...

    def say(self, message: str) -> None:
        """A short line about what happens now."""
        ...


class Silent:
    """Progress that nobody watches: for tests and library use."""

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:  # noqa: ARG002
        """Yield the items unchanged."""
        return iter(items)

    def say(self, message: str) -> None:
        """Do nothing."""
