"""Times of a list of matrix products on a simulated target, without launches, as a kernel benchmark measures them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.simulated.gpu_kernels import SPARSE_BYTES
from vitslim.backends.simulated.gpu_spec import GpuSpec
from vitslim.backends.simulated.spec import SystolicSpec
from vitslim.backends.simulated.systolic_estimate import array_work
from vitslim.backends.simulated.tensor_core import Floats, Widths, gemm_time

BITS = {"FP32": 16, "FP16": 16, "BF16": 16, "INT8": 8, "INT4": 4}
"""Operands on a GPU; FP32 is computed as FP16, a GPU's usual dense format."""


def gemm_us(gemms: Sequence[Gemm], spec: SystolicSpec | GpuSpec) -> Floats:
    """Microseconds of each product."""
    return _on_array(gemms, spec) if isinstance(spec, SystolicSpec) else _on_gpu(gemms, spec)


def labels(gemms: Sequence[Gemm], spec: SystolicSpec | GpuSpec) -> list[tuple[str, str]]:
    """Where the time of each product comes from, and its expected error."""
    if isinstance(spec, SystolicSpec):
        exact = spec.overlap == "none"
        return [("SCALE-Sim v3.0.0 (closed form)" if exact else "uncalibrated", "DRAM time derived")] * len(gemms)
    return [spec.provenance(spec.runs_as(BITS[g.dtype]), g.sparse, g.m, g.n, g.k) for g in gemms]


def roofline_us(gemms: Sequence[Gemm], spec: GpuSpec) -> Floats:
    """The plain roofline: the longer of operations over the published peak and operand bytes over DRAM bandwidth."""
    found = []
    for g in gemms:
        precision = spec.runs_as(BITS[g.dtype])
        w = widths(g, spec)
        moved = g.count * (g.m * g.k * w.activation + g.k * g.n * w.weight + g.m * g.n * w.result)
        work = 2 * g.count * g.m * g.n * g.k / (spec.peak_tops(precision, g.sparse) * 1e6)
        found.append(max(work, moved / (spec.dram_gbps * 1e3)))
    return np.array(found)


def widths(gemm: Gemm, spec: GpuSpec) -> Widths:
    """Bytes of the operands as GPU libraries hold them: an INT8 product writes INT32, with 2:4 weights BF16."""
    precision = spec.runs_as(BITS[gemm.dtype])
    bits = max(BITS[gemm.dtype], spec.narrowest)
    kept = SPARSE_BYTES[precision] if gemm.sparse else 1.0
    result = 4.0 if bits <= 8 and not gemm.sparse else 2.0
    return Widths(bits / 8, bits / 8 * kept, result)


def _on_gpu(gemms: Sequence[Gemm], spec: GpuSpec) -> Floats:
    times = np.zeros(len(gemms))
    kinds = [(spec.runs_as(BITS[g.dtype]), g.sparse, widths(g, spec)) for g in gemms]
    for kind in dict.fromkeys(kinds):
        precision, sparse, own = kind
        places = [i for i, one in enumerate(kinds) if one == kind]
        sizes = np.array([(gemms[i].count, gemms[i].m, gemms[i].n, gemms[i].k) for i in places], np.float64)
        constants = spec.constants(precision, sparse)
        times[places] = gemm_time(sizes, spec.device(), spec.rate(precision, sparse), constants, own).total_us
    return times


def _on_array(gemms: Sequence[Gemm], spec: SystolicSpec) -> Floats:
    sizes = np.array([(g.m, g.n, g.k) for g in gemms], np.int64).reshape(-1, 3)
    work = array_work(sizes, np.array([g.sparse for g in gemms], bool), spec)
    counts = np.array([g.count for g in gemms], np.float64)
    return np.asarray(counts * (work.cycles + work.stalls) / (spec.clock_ghz * 1e3), np.float64)
