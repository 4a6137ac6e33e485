"""A GPU with tensor cores as a simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.simulated.gpu.estimate import estimate
from vitslim.backends.simulated.gpu.gemm_times import dense_matmul_us, gemm_provenance, gemm_us, roofline_us
from vitslim.backends.simulated.gpu.spec import GpuSpec, load_gpu
from vitslim.backends.simulated.simulator import Floats, Ints
from vitslim.results import Estimate
from vitslim.workload import Workload


@dataclass(frozen=True)
class GpuSimulator:
    """One GPU with its settings."""

    name: str
    spec: GpuSpec
    two_four_note: str = "simulated: sparse tensor cores compute every layer with 2:4 weights"

    def estimate(self, workload: Workload) -> Estimate:
        """Latency and energy of a workload, kernel by kernel."""
        return estimate(workload, self.spec, self.name)

    def matmul_ms(self, sizes: Ints) -> Floats:
        """Milliseconds of dense FP16 matmuls, launches included; `sizes` int64 (n, 4): count, M, N, K."""
        return dense_matmul_us(sizes, self.spec) / 1e3

    def gemm_us(self, gemms: Sequence[Gemm]) -> Floats:
        """Microseconds of GEMMs without launches."""
        return gemm_us(gemms, self.spec)

    def gemm_provenance(self, gemms: Sequence[Gemm]) -> list[tuple[str, str]]:
        """Calibration and expected error of each GEMM."""
        return gemm_provenance(gemms, self.spec)

    def roofline_us(self, gemms: Sequence[Gemm]) -> Floats:
        """Microseconds of GEMMs by the published peak rates and the DRAM bandwidth."""
        return roofline_us(gemms, self.spec)


def load_simulator(target: str, name: str, changes: Mapping[str, Any], path: Path | None) -> GpuSimulator:
    """Make the simulator of a packaged GPU, or of a settings file on top of it, with some keys changed.

    Raises UsageError for an unknown GPU, unknown keys and invalid values, InputError for a file that cannot be read.
    """
    return GpuSimulator(name, load_gpu(target, changes, path))
