"""A latency target that is checked by measuring the pruned model, and the correction that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vitslim.graph.model_graph import ModelGraph
from vitslim.results import Measurement
from vitslim.stages.prune.nvit.units import Units, cut_units

ROUNDS = 3
"""Largest number of measurements."""
TOLERANCE = 0.02
"""Largest relative distance of the measured latency from the target."""


def corrected_limit(limit: float, estimate: float, measured_share: float, target: float) -> float:
    """Return the limit on the estimated cost at which the measured share of the dense latency should be the target.

    estimate: estimated cost of the measured model. The limit does not change if the share is within TOLERANCE of the
    target; otherwise the error of the estimate is taken to be the same fraction at the limit.
    """
    if abs(measured_share / target - 1) <= TOLERANCE:
        return limit
    return estimate * target / measured_share


class MeasuredTarget:
    """Measures a pruned model against the dense one, interleaved, and corrects the limit at most ROUNDS times."""

    def __init__(
        self,
        graph: ModelGraph,
        write: Callable[[ModelGraph, Path], None],
        latency: Callable[[Mapping[str, Path]], Mapping[str, Measurement]],
        cost_of: Callable[[Units], float],
        target: float,
        folder: Path,
    ) -> None:
        """graph: the dense model. target: share of its latency. folder: for the files that are measured."""
        self.graph, self.write, self.latency, self.cost_of = graph, write, latency, cost_of
        self.target, self.folder = target, folder
        self.shares: list[float] = []
        """Measured shares of the dense latency, one for each round."""

    def correct(self, units: Units, limit: float) -> float:
        """Return the limit at which the measured latency should meet the target; the same limit if it does."""
        if len(self.shares) == ROUNDS:
            return limit
        self.shares.append(self.measure(units))
        return corrected_limit(limit, self.cost_of(units), self.shares[-1], self.target)

    def measure(self, units: Units) -> float:
        """Return the measured latency of the model with these units as a share of that of the dense model."""
        files = {"dense": self.folder / "nvit.dense.onnx", "pruned": self.folder / "nvit.pruned.onnx"}
        if not files["dense"].exists():
            self.write(self.graph, files["dense"])
        self.write(cut_units(self.graph, units, rescale_norms=False), files["pruned"])
        return 1 / (self.latency(files)["pruned"].speedup or 1.0)
