"""The result of a gate."""

from __future__ import annotations

from vitslim.results.value import Value


class GateResult(Value):
    """One gate of the recipe, its value, and whether it passed."""

    name: str
    limit: float
    value: float
    """The estimate; NaN if it was not measured, which fails."""
    interval: tuple[float, float] | None = None
    """95 % interval of the value; None where it has none."""
    passed: bool
