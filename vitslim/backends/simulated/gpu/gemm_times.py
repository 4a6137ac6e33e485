"""Latency of single GEMMs on a GPU: as a kernel benchmark measures them, by the roofline, and as parts of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.simulated.gpu.kernel_times import SPARSE_BYTES
from vitslim.backends.simulated.gpu.spec import GpuSpec
from vitslim.backends.simulated.gpu.tensor_core import Widths, gemm_time
from vitslim.backends.simulated.simulator import Floats, Ints

BITS = {"FP32": 16, "FP16": 16, "BF16": 16, "INT8": 8, "INT4": 4}
"""Bits of operands on a GPU; FP32 GEMMs run in FP16."""


def gemm_us(gemms: Sequence[Gemm], spec: GpuSpec) -> Floats:
    """Return microseconds of each GEMM without launches; float64 (n,)."""
    times = np.zeros(len(gemms))
    kinds = [(spec.runs_as(BITS[g.dtype]), g.sparse, widths(g, spec)) for g in gemms]
    for kind in dict.fromkeys(kinds):
        precision, sparse, own = kind
        places = [i for i, one in enumerate(kinds) if one == kind]
        sizes = np.array([(gemms[i].count, gemms[i].m, gemms[i].n, gemms[i].k) for i in places], np.float64)
        constants = spec.constants(precision, sparse)
        times[places] = gemm_time(sizes, spec.device(), spec.rate(precision, sparse), constants, own).total_us
    return times


def gemm_provenance(gemms: Sequence[Gemm], spec: GpuSpec) -> list[tuple[str, str]]:
    """Return the calibration and the expected error of each GEMM."""
    return [spec.provenance(spec.runs_as(BITS[g.dtype]), g.sparse, g.m, g.n, g.k) for g in gemms]


def roofline_us(gemms: Sequence[Gemm], spec: GpuSpec) -> Floats:
    """Return the roofline: the longer of operations over the peak rate and operand bytes over the DRAM bandwidth."""
    found = []
    for g in gemms:
        precision = spec.runs_as(BITS[g.dtype])
        w = widths(g, spec)
        moved = g.count * (g.m * g.k * w.activation + g.k * g.n * w.weight + g.m * g.n * w.result)
        work = 2 * g.count * g.m * g.n * g.k / (spec.peak_tops(precision, g.sparse) * 1e6)
        found.append(max(work, moved / (spec.dram_gbps * 1e3)))
    return np.array(found)


def widths(gemm: Gemm, spec: GpuSpec) -> Widths:
    """Return the bytes of operands in GPU libraries: an INT8 GEMM writes INT32, with 2:4 weights BF16."""
    precision = spec.runs_as(BITS[gemm.dtype])
    bits = max(BITS[gemm.dtype], spec.narrowest)
    kept = SPARSE_BYTES[precision] if gemm.sparse else 1.0
    result = 4.0 if bits <= 8 and not gemm.sparse else 2.0
    return Widths(bits / 8, bits / 8 * kept, result)


def dense_matmul_us(sizes: Ints, spec: GpuSpec) -> Floats:
    """Return microseconds of dense FP16 matmuls with their launches; `sizes` int64 (n, 4): count, M, N, K."""
    gap = spec.launch.graph_gap_us if spec.launch.mode == "graph" else 0.0
    found = gemm_time(
        sizes.astype(np.float64), spec.device(), spec.rate("fp16", False), spec.constants("fp16", False),
        Widths(2.0, 2.0, 2.0),
    )  # fmt: skip
    return np.maximum(found.total_us + gap, spec.launch.eager_us if spec.launch.mode == "eager" else 0.0)
