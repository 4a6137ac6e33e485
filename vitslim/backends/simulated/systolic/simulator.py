"""The systolic array as a simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.simulated.simulator import Bools, Floats, Ints
from vitslim.backends.simulated.systolic.estimate import CLOSED_FORM, array_work, estimate
from vitslim.backends.simulated.systolic.spec import SystolicSpec, load_spec
from vitslim.results import Estimate
from vitslim.workload import Workload


@dataclass(frozen=True)
class SystolicSimulator:
    """A systolic array with its settings."""

    name: str
    spec: SystolicSpec

    @property
    def two_four_note(self) -> str:
        """Whether these settings use 2:4 weights."""
        if self.spec.uses_two_four:
            return "simulated: the array skips the zeros of layers with 2:4 weights"
        return "simulated: these settings compute layers with 2:4 weights as dense ones"

    def estimate(self, workload: Workload) -> Estimate:
        """Cycles, latency and energy of a workload."""
        return estimate(workload, self.spec, self.name)

    def matmul_ms(self, sizes: Ints) -> Floats:
        """Milliseconds of dense matmuls, DRAM stalls included; `sizes` int64 (n, 4): count, M, N, K."""
        cycles = self._cycles(sizes, np.zeros(len(sizes), bool))
        return cycles / (self.spec.clock_ghz * 1e6)

    def gemm_us(self, gemms: Sequence[Gemm]) -> Floats:
        """Microseconds of GEMMs, DRAM stalls included; 2:4 weights as the settings use them."""
        sizes = np.array([(g.count, g.m, g.n, g.k) for g in gemms], np.int64).reshape(-1, 4)
        cycles = self._cycles(sizes, np.array([g.sparse for g in gemms], bool))
        return cycles / (self.spec.clock_ghz * 1e3)

    def gemm_provenance(self, gemms: Sequence[Gemm]) -> list[tuple[str, str]]:
        """Calibration and expected error, the same for all GEMMs."""
        calibration = CLOSED_FORM if self.spec.overlap == "none" else "uncalibrated"
        return [(calibration, "DRAM time derived")] * len(gemms)

    def roofline_us(self, gemms: Sequence[Gemm]) -> None:
        """Return None: there is no roofline reference for this target."""

    def _cycles(self, sizes: Ints, two_four: Bools) -> Floats:
        """Compute and stall cycles of all GEMMs of each row of `sizes`."""
        work = array_work(sizes[:, 1:], two_four, self.spec)
        return np.asarray(sizes[:, 0] * (work.cycles + work.stalls), np.float64)


def load_simulator(target: str, name: str, changes: Mapping[str, Any], path: Path | None) -> SystolicSimulator:  # noqa: ARG001
    """Make the simulator of packaged settings, or of a settings file, with some keys changed.

    Raises UsageError for unknown keys and invalid values, InputError for a file that cannot be read.
    """
    return SystolicSimulator(name, load_spec(changes, path))
