"""`bench --gemms`: times of a list of matrix products, predicted or measured, and how far predictions are off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vitslim.backends.environment import environment
from vitslim.backends.gemm_errors import GemmError, GemmSpeedup, by_class, noise, speedups
from vitslim.backends.gemm_list import Gemm
from vitslim.backends.registry import Backend, Simulated
from vitslim.backends.simulated.gemms import gemm_us, labels, roofline_us
from vitslim.backends.simulated.gpu_spec import GpuSpec
from vitslim.progress import Progress, Silent
from vitslim.results import Environment, Value


class GemmRow(Value):
    """One matrix product of a list."""

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
    """Times of a list of matrix products on one backend."""

    backend: str
    kind: Literal["measured", "simulated"]
    environment: Environment
    rows: tuple[GemmRow, ...]
    errors: tuple[GemmError, ...] = ()
    speedups: tuple[GemmSpeedup, ...] = ()


def bench_gemms(
    gemms: Sequence[Gemm], backend: Backend, threads: int = 1, progress: Progress | None = None
) -> GemmResult:
    """Predicted times on a simulated backend with their errors where there are measured ones; a measured backend
    fills the measured times in.

    Raises UsageError for products that the backend cannot run, BackendUnavailableError for a backend that is not here.
    """
    backend.require()
    if not isinstance(backend, Simulated):
        times = backend.gemm_us(gemms, threads, progress or Silent())
        rows = tuple(_row(g.measured(us)) for g, us in zip(gemms, times, strict=True))
        return GemmResult(backend=backend.name, kind="measured", environment=environment(), rows=rows)
    predicted = gemm_us(gemms, backend.spec)
    sources = labels(gemms, backend.spec)
    rows = tuple(
        _row(g, float(us), *source) for g, us, source in zip(gemms, predicted, sources, strict=True)
    )  # fmt: skip
    errors = by_class(gemms, predicted)
    if isinstance(backend.spec, GpuSpec):
        errors += by_class(gemms, roofline_us(gemms, backend.spec), "plain roofline")
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
