"""`bench --gemms`: predicted or measured latency of a list of GEMMs, and the errors of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vitslim.backends.environment import environment
from vitslim.backends.gemm_errors import GemmError, GemmSpeedup, by_class, noise, speedups
from vitslim.backends.gemm_list import Gemm
from vitslim.backends.registry import Backend, Measured, Simulated
from vitslim.progress import Progress, Silent
from vitslim.results import Environment, Value


class GemmRow(Value):
    """One GEMM of a list."""

    m: int
    n: int
    k: int
    dtype: str
    sparse: bool
    """Whether its weights are 2:4."""
    count: int
    measured_us: float | None = None
    predicted_us: float | None = None
    calibration: str = ""
    expected_error: str = ""


class GemmResult(Value):
    """Latency of a list of GEMMs on one backend."""

    backend: str
    kind: Literal["measured", "simulated"]
    environment: Environment
    rows: tuple[GemmRow, ...]
    errors: tuple[GemmError, ...] = ()
    speedups: tuple[GemmSpeedup, ...] = ()


def bench_gemms(
    gemms: Sequence[Gemm], backend: Backend, threads: int = 1, progress: Progress | None = None
) -> GemmResult:
    """Predict the times on a simulated backend, with errors where there are measured times, or measure them.

    Raises UsageError for GEMMs that the backend cannot time, BackendUnavailableError for a backend that is missing.
    """
    backend.require()
    match backend:
        case Measured():
            return _measured(gemms, backend, threads, progress or Silent())
        case Simulated():
            return _predicted(gemms, backend)


def _measured(gemms: Sequence[Gemm], backend: Measured, threads: int, progress: Progress) -> GemmResult:
    times = backend.gemm_us(gemms, threads, progress)
    rows = tuple(_row(g.measured(us)) for g, us in zip(gemms, times, strict=True))
    return GemmResult(backend=backend.name, kind="measured", environment=environment(), rows=rows)


def _predicted(gemms: Sequence[Gemm], backend: Simulated) -> GemmResult:
    simulator = backend.simulator
    predicted, roofline = simulator.gemm_us(gemms), simulator.roofline_us(gemms)
    provenance = simulator.gemm_provenance(gemms)
    rows = tuple(_row(g, float(us), *source) for g, us, source in zip(gemms, predicted, provenance, strict=True))
    errors = by_class(gemms, predicted)
    errors += [] if roofline is None else by_class(gemms, roofline, "roofline")
    floor = noise(gemms)
    errors += [floor] if floor else []
    return GemmResult(
        backend=backend.name, kind="simulated", environment=environment(), rows=rows, errors=tuple(errors),
        speedups=tuple(speedups(gemms, predicted)),
    )  # fmt: skip


def _row(g: Gemm, predicted_us: float | None = None, calibration: str = "", expected_error: str = "") -> GemmRow:
    return GemmRow(
        m=g.m, n=g.n, k=g.k, dtype=g.dtype, sparse=g.sparse, count=g.count, measured_us=g.measured_us,
        predicted_us=predicted_us, calibration=calibration, expected_error=expected_error,
    )  # fmt: skip
