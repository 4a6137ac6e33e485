"""The fraction of a cost that a stage may leave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from vitslim.errors import Problem, closest
from vitslim.recipe.backend_names import known_backends
from vitslim.recipe.config import Config, KeepRate


class CostTarget(Config):
    """Fraction of the stage's input model that may remain; exactly one of `macs` and `latency`."""

    LIMITS: ClassVar[tuple[str, ...]] = ("macs", "latency")
    """Keys of which exactly one is given."""

    macs: KeepRate | None = Field(None, description="fraction of the MACs that may remain")
    latency: KeepRate | None = Field(
        None, description="fraction of the latency that may remain; needs `table` or `backend`"
    )
    table: str | None = Field(None, description="latency table written by `vitslim bench --table`")
    backend: str | None = Field(
        None,
        description="instead of `table`: the backend whose table is used, such as onnxruntime:cpu or sim:a100. `run` "
        "builds the table if the user's cache has none for this model, device and version",
    )
    batch: PositiveInt = Field(1, description="batch size of the table of `backend`")
    precision: Literal["float32", "int8"] = Field(
        "float32", description="precision of the table of `backend`: int8 if the model is quantized later"
    )

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
        if self.latency is not None and self.table is None and self.backend is None:
            hint = "`vitslim bench --table MODEL` writes one; or set `backend`"
            yield Problem("table", "`latency` needs a latency table", hint)
        for key, words in (("table", "a latency table"), ("backend", "a backend")):
            if getattr(self, key) is not None and self.latency is None:
                yield Problem(key, f"got {words} without `latency`", f"add `latency`, or remove `{key}`")
        if self.table is not None and self.backend is not None:
            yield Problem("backend", "got `table` and `backend`", "keep one of them")
        elif self.backend is not None and self.backend not in known_backends():
            yield Problem("backend", f"got '{self.backend}'", closest(self.backend, known_backends()))
