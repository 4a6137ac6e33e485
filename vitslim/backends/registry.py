"""Backends by name: the tables of runtimes and simulators, and the parser of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.matmul_times import MatmulTimes, batched
from vitslim.backends.measured.interleaved import measure_interleaved
from vitslim.backends.measured.onnxruntime import ONNX_RUNTIME, PROVIDERS
from vitslim.backends.measured.openvino import OPENVINO
from vitslim.backends.measured.runtime import Runtime
from vitslim.backends.measured.torch_cuda import TORCH_CUDA
from vitslim.backends.simulated.fact.simulator import load_simulator as load_fact
from vitslim.backends.simulated.gpu.simulator import load_simulator as load_gpu
from vitslim.backends.simulated.settings import read_settings
from vitslim.backends.simulated.simulator import ApproximatingSimulator, Simulator, SimulatorLoader
from vitslim.backends.simulated.spatten.simulator import load_simulator as load_spatten
from vitslim.backends.simulated.systolic.simulator import load_simulator as load_systolic
from vitslim.errors import UsageError, closest
from vitslim.latency_grid import Precision, Shape
from vitslim.progress import Progress
from vitslim.recipe.backend_names import SIM, SIMULATED_TARGETS, SPEC_SUFFIXES, backend_name, known_backends
from vitslim.results import Estimate, Measurement
from vitslim.results.accelerator_counts import Counts
from vitslim.workload import read_workload

RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (ONNX_RUNTIME, *PROVIDERS, OPENVINO, TORCH_CUDA)}
"""Measured backends: one entry for each name in `backend_names.MEASURED`."""
SIMULATORS: dict[str, SimulatorLoader] = {
    "systolic": load_systolic,
    "gpu": load_gpu,
    "spatten": load_spatten,
    "fact": load_fact,
}
"""Families of simulated targets; `backend_names.SIMULATED_TARGETS` assigns a family to each target."""


@dataclass(frozen=True)
class Measured:
    """A backend that runs ONNX files, or the graphs beside them, and measures the time."""

    name: str

    @property
    def runtime(self) -> Runtime:
        """The runtime that executes the models."""
        return RUNTIMES[self.name]

    def require(self) -> None:
        """Raise BackendUnavailableError when the runtime or its device is missing."""
        self.runtime.require()

    def measure(
        self, files: Mapping[str, Path], baseline: str, batches: Sequence[int], threads: Sequence[int],
        seconds: float, progress: Progress,
    ) -> dict[str, tuple[Measurement, ...]]:  # fmt: skip
        """Return the latency of each file at each batch size and thread count; see `measure_interleaved`.

        Only the first thread count is used where threads have no effect.
        """
        threads = threads if self.runtime.uses_threads else threads[:1]
        return measure_interleaved(self.runtime, files, baseline, batches, threads, seconds, progress)

    def matmul_times(
        self, shapes: Sequence[Shape], dense: Path, batch: int, threads: int, precision: Precision, progress: Progress
    ) -> MatmulTimes:
        """Return the latency of matmuls and of the dense model that contains them.

        Raises UsageError when the runtime cannot measure latency tables.
        """
        measure = self.runtime.time_matmuls
        if measure is None:
            names = ", ".join(name for name, runtime in RUNTIMES.items() if runtime.time_matmuls)
            raise UsageError(f"latency tables cannot be measured on {self.name}", f"use {names}")
        return measure(shapes, dense, batch, threads, precision, progress)

    def gemm_us(self, gemms: Sequence[Gemm], threads: int, progress: Progress) -> list[float]:
        """Return the median microseconds of each GEMM. Raises UsageError for GEMMs that the runtime cannot time."""
        measure = self.runtime.time_gemms
        if measure is None:
            names = " or ".join(name for name, runtime in RUNTIMES.items() if runtime.time_gemms)
            raise UsageError(f"GEMMs cannot be timed on {self.name}", f"use {names}")
        return measure(gemms, threads, progress)


@dataclass(frozen=True)
class Simulated:
    """A backend that computes the latency of an ONNX file."""

    simulator: Simulator

    @property
    def name(self) -> str:
        """Name of the backend in results."""
        return self.simulator.name

    def require(self) -> None:
        """Do nothing: simulated backends are always available."""

    def estimate(self, path: Path, batch: int, counts: Counts | None = None) -> Estimate:
        """Return the estimate of one ONNX file at one batch size, with the work of images if they were counted."""
        workload = read_workload(path, batch)
        if counts is not None and isinstance(self.simulator, ApproximatingSimulator):
            return self.simulator.estimate(workload, counts)
        return self.simulator.estimate(workload)

    def matmul_times(self, shapes: Sequence[Shape], dense: Path, batch: int, precision: Precision) -> MatmulTimes:
        """Return the latency of dense matmuls and of the dense model that contains them.

        INT8 matmuls by a weight are without launches.
        """
        sizes = np.array([batched(shape, batch) for shape in shapes], np.int64).reshape(-1, 4)[:, [0, 1, 3, 2]]
        whole = self.estimate(dense, batch)
        ms = self.simulator.matmul_ms(sizes)
        if precision == "int8":
            gemms = [Gemm(m=int(m), n=int(n), k=int(k), dtype="INT8") for _, m, n, k in sizes]
            is_linear = np.array([shape[0] == 1 for shape in shapes])
            ms = np.where(is_linear, self.simulator.gemm_us(gemms) / 1e3, ms)
        return MatmulTimes(dict(zip(shapes, ms.tolist(), strict=True)), whole.latency_ms, settings=whole.settings)


Backend = Measured | Simulated


def parse_backend(value: str | Mapping[str, Any]) -> Backend:
    """Return the backend of `onnxruntime:cpu`, `sim:a100`, `sim:FILE.yaml` or `{sim: systolic, array: [32, 32]}`.

    Raises UsageError for unknown names and invalid settings, InputError for a settings file that cannot be read.
    """
    if isinstance(value, Mapping):
        return _parse_mapping(value)
    if not isinstance(value, str):
        raise UsageError(f"a backend is a name, not {value!r}", f"allowed: {', '.join(known_backends())}")
    target = value.removeprefix(SIM)
    if value.startswith(SIM) and target:
        return _load_simulated(target, {}, value)
    if value not in RUNTIMES:
        raise UsageError(f"there is no backend '{value}'", closest(value, known_backends()))
    return Measured(value)


def _parse_mapping(value: Mapping[str, Any]) -> Simulated:
    target = value.get("sim")
    if not isinstance(target, str):
        raise UsageError(
            "a backend written as a mapping needs the key 'sim'", "for example {sim: systolic, dataflow: ws}"
        )
    changes = {str(key): setting for key, setting in value.items() if key != "sim"}
    return _load_simulated(target, changes, backend_name(value))


def _load_simulated(target: str, changes: Mapping[str, Any], name: str) -> Simulated:
    """Load a packaged target, or a settings file, whose key `target` names the packaged target that it changes."""
    path = Path(target) if target.endswith(SPEC_SUFFIXES) else None
    base = target if path is None else read_settings(path).get("target", "systolic")
    if not isinstance(base, str):
        raise UsageError(f"{path}: target: input should be a name", f"allowed: {', '.join(SIMULATED_TARGETS)}")
    if base not in SIMULATED_TARGETS:
        raise UsageError(f"there is no simulated backend '{base}'", closest(base, SIMULATED_TARGETS))
    return Simulated(SIMULATORS[SIMULATED_TARGETS[base]](base, name, changes, path))
