"""SpAtten as a simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.simulated.simulator import Floats, Ints
from vitslim.backends.simulated.spatten.estimate import estimate, per_image
from vitslim.backends.simulated.spatten.fully_connected import fc_cycles
from vitslim.backends.simulated.spatten.sequences import estimate_sequences
from vitslim.backends.simulated.spatten.spec import SpattenSpec, load_spec
from vitslim.recipe.accelerators import SpattenSettings
from vitslim.results import Estimate
from vitslim.results.accelerator_counts import Counts, SpattenCounts
from vitslim.workload import Workload


@dataclass(frozen=True)
class SpattenSimulator:
    """A SpAtten chip with its settings."""

    name: str
    spec: SpattenSpec
    two_four_note: str = "simulated: computes layers with 2:4 weights as dense ones"

    @property
    def approximation(self) -> SpattenSettings:
        """The settings of the functional half."""
        return self.spec.approximation

    def estimate(self, workload: Workload, counts: Counts | None = None) -> Estimate:
        """Return cycles, latency and energy; without counts they are stated by the settings."""
        return estimate(workload, _spatten(counts), self.spec, self.name)

    def per_image(self, workload: Workload, counts: Counts) -> dict[str, Floats]:
        """Return values of each image at batch 1 by name, float64 (images,)."""
        found = _spatten(counts)
        return {} if found is None else per_image(workload, found, self.spec)

    def estimate_sequences(self, path: Path) -> Estimate:
        """Return the estimate of a sequence workload in a CSV file. Raises InputError for an invalid file."""
        return estimate_sequences(path, self.spec, self.name)

    def matmul_ms(self, sizes: Ints) -> Floats:
        """Milliseconds of dense matmuls on both arrays; `sizes` int64 (n, 4): count, M, N, K."""
        cycles, _ = fc_cycles(sizes[:, 1:].astype(np.float64), self.spec)
        return np.asarray(sizes[:, 0] * cycles / (self.spec.clock_ghz * 1e6), np.float64)

    def gemm_us(self, gemms: Sequence[Gemm]) -> Floats:
        """Microseconds of GEMMs on both arrays; 2:4 weights run as dense ones."""
        return 1e3 * self.matmul_ms(np.array([(g.count, g.m, g.n, g.k) for g in gemms], np.int64).reshape(-1, 4))

    def gemm_provenance(self, gemms: Sequence[Gemm]) -> list[tuple[str, str]]:
        """Calibration and expected error, the same for all GEMMs."""
        return [("derived", "unknown")] * len(gemms)

    def roofline_us(self, gemms: Sequence[Gemm]) -> None:
        """Return None: there is no roofline reference for this target."""


def _spatten(counts: Counts | None) -> SpattenCounts | None:
    """Return the counts. Raises TypeError for the counts of another accelerator."""
    if counts is not None and not isinstance(counts, SpattenCounts):
        raise TypeError(f"SpAtten needs its own counts, got {type(counts).__name__}")
    return counts


def load_simulator(target: str, name: str, changes: Mapping[str, Any], path: Path | None) -> SpattenSimulator:
    """Make the simulator of packaged settings, or of a settings file, with some keys changed.

    Raises UsageError for unknown keys and invalid values, InputError for a file that cannot be read.
    """
    return SpattenSimulator(name, load_spec(target, changes, path))
