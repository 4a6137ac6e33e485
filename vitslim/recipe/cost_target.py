"""The fraction of a cost that a stage may leave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from vitslim.errors import Problem
from vitslim.recipe.config import Config, KeepRate


class CostTarget(Config):
    """Fraction of the stage's input model that may remain; exactly one of `macs` and `latency`."""

    LIMITS: ClassVar[tuple[str, ...]] = ("macs", "latency")
    """Keys of which exactly one is given."""

    macs: KeepRate | None = Field(None, description="fraction of the MACs that may remain")
    latency: KeepRate | None = Field(None, description="fraction of the latency that may remain; needs `table`")
    table: str | None = Field(None, description="latency table written by `vitslim bench --table`")

    @property
    def limit(self) -> tuple[str, float]:
        """The limit that is set: its key, and the fraction that may remain."""
        return next((key, share) for key in self.LIMITS if (share := getattr(self, key)) is not None)

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions among the keys; `where` is relative to the target."""
        given = [key for key in self.LIMITS if getattr(self, key) is not None]
        if len(given) != 1:
            *most, last = self.LIMITS
            message = (
                f"got {' and '.join(given) or 'none of them'}, expected exactly one of {', '.join(most)} and {last}"
            )
            yield Problem("", message, f"keep one: {given[0]}" if given else "for example {macs: 0.7}")
        if self.latency is not None and self.table is None:
            yield Problem("table", "`latency` needs a latency table", "`vitslim bench --table MODEL` writes one")
        if self.table is not None and self.latency is None:
            yield Problem("table", "got a latency table without `latency`", "add `latency`, or remove `table`")
