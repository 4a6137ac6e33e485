"""Times of single matrix products on a systolic array, for latency tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitslim.backends.products import ProductTimes, for_batch
from vitslim.backends.simulated.estimate import estimate
from vitslim.backends.simulated.spec import SystolicSpec
from vitslim.backends.simulated.systolic import Array, compute_cycles
from vitslim.latency_grid import Shape
from vitslim.workload import Workload


def product_times(shapes: Sequence[Shape], dense: Workload, spec: SystolicSpec) -> ProductTimes:
    """Milliseconds of dense products and of the whole workload, at the workload's batch size."""
    sizes = np.array([for_batch(shape, dense.batch) for shape in shapes], np.int64).reshape(-1, 4)
    count, m, k, n = sizes.T
    cycles = count * compute_cycles(m, n, k, Array(*spec.array, spec.dataflow), spec.overlap)
    whole = estimate(dense, spec)
    ms = (cycles / (spec.clock_ghz * 1e6)).tolist()
    return ProductTimes(dict(zip(shapes, ms, strict=True)), whole.latency_ms, settings=whole.settings)
