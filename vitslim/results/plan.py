"""The plan of a recipe, before anything runs."""

from __future__ import annotations

from vitslim.results.value import Value
from vitslim.results.values import Cost


class PlanRow(Value):
    """One stage of a plan with the cost of the model after it; None when the model was not traced."""

    kind: str
    method: str
    cost: Cost | None = None
    approximate: bool = False
    """Whether the cost also depends on weights and data, so that the plan only approximates it."""
    seconds: float | None = None
    """Estimated duration on this machine, with the evaluation of the file; None if it was not estimated."""


class Plan(Value):
    """Stages and estimated costs of a recipe before it runs. The first row is the dense model."""

    name: str
    model: str
    rows: tuple[PlanRow, ...]
    warnings: tuple[str, ...] = ()
    seconds: float | None = None
    """Estimated duration of the whole run on this machine, with measuring; None if it was not estimated."""
