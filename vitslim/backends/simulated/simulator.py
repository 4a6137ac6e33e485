"""Interface between simulated backends and the targets that they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from vitslim.backends.gemm_list import Gemm
from vitslim.recipe.accelerators import Accelerator
from vitslim.results import Estimate
from vitslim.results.accelerator_counts import Counts
from vitslim.workload import Workload

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Simulator(Protocol):
    """A simulated target with its settings."""

    @property
    def name(self) -> str:
        """Name of the backend in results, such as `sim:a100`."""
        ...

    @property
    def two_four_note(self) -> str:
        """How the target computes layers with 2:4 weights, one phrase."""
        ...

    def estimate(self, workload: Workload) -> Estimate:
        """Latency, utilization and energy of a whole model at the batch size of the workload."""
        ...

    def matmul_ms(self, sizes: Ints) -> Floats:
        """Milliseconds of dense matmuls as parts of a model, launches and stalls included, for latency tables.

        `sizes` int64 (n, 4): count, M, N, K. Returns float64 (n,).
        """
        ...

    def gemm_us(self, gemms: Sequence[Gemm]) -> Floats:
        """Microseconds of GEMMs as a kernel benchmark measures them, without launches; float64 (n,)."""
        ...

    def gemm_provenance(self, gemms: Sequence[Gemm]) -> list[tuple[str, str]]:
        """Calibration and expected error of the time of each GEMM."""
        ...

    def roofline_us(self, gemms: Sequence[Gemm]) -> Floats | None:
        """Microseconds of GEMMs by the roofline of the target, to compare `gemm_us` with; None without a roofline."""
        ...


@runtime_checkable
class ApproximatingSimulator(Simulator, Protocol):
    """A target that changes results: its functional half counts the work of each image."""

    @property
    def approximation(self) -> Accelerator:
        """The settings of the functional half."""
        ...

    def estimate(self, workload: Workload, counts: Counts | None = None) -> Estimate:
        """Estimate from the mean over the images of `counts`; without counts the settings state them."""
        ...

    def per_image(self, workload: Workload, counts: Counts) -> dict[str, Floats]:
        """Values of each image at batch 1 by name, such as `cycles`; float64 (images,)."""
        ...


@runtime_checkable
class SequenceSimulator(Protocol):
    """A target that reads sequence workloads from CSV files."""

    def estimate_sequences(self, path: Path) -> Estimate:
        """Estimate of all steps of a workload. Raises InputError for an invalid file."""
        ...


SimulatorLoader = Callable[[str, str, Mapping[str, Any], Path | None], Simulator]
"""Make a simulator from a target name, a backend name for results, changed settings, and a settings file or None.

Raises UsageError for unknown keys and invalid values, InputError for a settings file that cannot be read.
"""
