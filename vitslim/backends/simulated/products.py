"""Times of single matrix products on a simulated target, for latency tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitslim.backends.products import ProductTimes, for_batch
from vitslim.backends.simulated.gpu_estimate import estimate as estimate_gpu
from vitslim.backends.simulated.gpu_estimate import products_us
from vitslim.backends.simulated.gpu_spec import GpuSpec
from vitslim.backends.simulated.spec import SystolicSpec
from vitslim.backends.simulated.systolic import Ints
from vitslim.backends.simulated.systolic_estimate import array_work, estimate
from vitslim.latency_grid import Shape
from vitslim.workload import Workload


def product_times(shapes: Sequence[Shape], dense: Workload, spec: SystolicSpec | GpuSpec) -> ProductTimes:
    """Milliseconds of dense products and of the whole workload, at the workload's batch size, in one call."""
    sizes = np.array([for_batch(shape, dense.batch) for shape in shapes], np.int64).reshape(-1, 4)[:, [0, 1, 3, 2]]
    if isinstance(spec, GpuSpec):
        ms, whole = products_us(sizes, spec) / 1e3, estimate_gpu(dense, spec)
    else:
        ms, whole = _array_ms(sizes, spec), estimate(dense, spec)
    return ProductTimes(dict(zip(shapes, ms.tolist(), strict=True)), whole.latency_ms, settings=whole.settings)


def _array_ms(sizes: Ints, spec: SystolicSpec) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """`sizes` int64 (n, 4): count, M, N, K; one after the other, DRAM stalls included."""
    work = array_work(sizes[:, 1:], np.zeros(len(sizes), bool), spec)
    return sizes[:, 0] * (work.cycles + work.stalls) / (spec.clock_ghz * 1e6)
