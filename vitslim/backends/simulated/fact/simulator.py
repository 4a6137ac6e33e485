"""FACT as a simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.simulated.fact.estimate import estimate, per_image
from vitslim.backends.simulated.fact.spec import FactSpec, load_spec
from vitslim.backends.simulated.simulator import Floats, Ints
from vitslim.recipe.accelerators import FactSettings
from vitslim.results import Estimate
from vitslim.results.accelerator_counts import Counts, FactCounts
from vitslim.workload import Workload


@dataclass(frozen=True)
class FactSimulator:
    """A FACT chip with its settings."""

    name: str
    spec: FactSpec
    two_four_note: str = "simulated: computes layers with 2:4 weights as dense ones"

    @property
    def approximation(self) -> FactSettings:
        """The settings of the functional half."""
        return self.spec.approximation

    def estimate(self, workload: Workload, counts: Counts | None = None) -> Estimate:
        """Return cycles, latency and energy; without counts they are stated by the settings."""
        return estimate(workload, None if counts is None else _fact(counts), self.spec, self.name)

    def per_image(self, workload: Workload, counts: Counts) -> dict[str, Floats]:
        """Return values of each image by name, float64 (images,)."""
        return per_image(workload, _fact(counts), self.spec)

    def matmul_ms(self, sizes: Ints) -> Floats:
        """Milliseconds of dense INT8 matmuls; `sizes` int64 (n, 4): count, M, N, K."""
        count, m, n, k = sizes.astype(np.float64).T
        cycles = np.maximum(m * n * k / self.spec.mult, (m * k + k * n + m * n) / self.spec.bytes_per_cycle)
        return np.asarray(count * cycles / (self.spec.clock_ghz * 1e6), np.float64)

    def gemm_us(self, gemms: Sequence[Gemm]) -> Floats:
        """Microseconds of INT8 GEMMs; 2:4 weights run as dense ones."""
        return 1e3 * self.matmul_ms(np.array([(g.count, g.m, g.n, g.k) for g in gemms], np.int64).reshape(-1, 4))

    def gemm_provenance(self, gemms: Sequence[Gemm]) -> list[tuple[str, str]]:
        """Calibration and expected error, the same for all GEMMs."""
        return [("reconstructed", "unknown")] * len(gemms)

    def roofline_us(self, gemms: Sequence[Gemm]) -> None:
        """Return None: there is no roofline reference for this target."""


def _fact(counts: Counts) -> FactCounts:
    """Return the counts. Raises TypeError for the counts of another accelerator."""
    if not isinstance(counts, FactCounts):
        raise TypeError(f"FACT needs its own counts, got {type(counts).__name__}")
    return counts


def load_simulator(target: str, name: str, changes: Mapping[str, Any], path: Path | None) -> FactSimulator:  # noqa: ARG001
    """Make the simulator of packaged settings, or of a settings file, with some keys changed.

    Raises UsageError for unknown keys and invalid values, InputError for a file that cannot be read.
    """
    return FactSimulator(name, load_spec(changes, path))
