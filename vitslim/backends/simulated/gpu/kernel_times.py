"""Latency of single kernels on a GPU: GEMMs and fused attention on tensor cores, all others by their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from vitslim.backends.simulated.gpu.spec import GpuSpec, Precision
from vitslim.backends.simulated.gpu.tensor_core import Widths, gemm_time
from vitslim.workload import Kernel, Operator, Workload
from vitslim.workload.operators import MATMUL_KINDS

FLOAT_BYTES = 2.0
"""A GPU stores the 32-bit floats of the file as FP16."""
SPARSE_BYTES: dict[Precision, float] = {"fp16": 9 / 16, "fp8": 5 / 8, "int8": 5 / 8, "int4": 5 / 8}
"""Size of a 2:4 weight relative to a dense one: half of the values, and a 2-bit index for each kept value."""


@dataclass(frozen=True)
class KernelTime:
    """One kernel and its microseconds without the launch."""

    name: str
    op: str
    operators: int
    """Number of launches without fusion."""
    floor_us: float
    """Fixed time."""
    work_us: float
    compute_us: float
    memory_us: float
    bytes: float
    macs: int = 0
    precision: Precision | None = None
    sparse: bool = False
    launches: int = 1
    calibration: str = "assumed"
    expected_error: str = "unknown"


class Timer:
    """Computes the time of the kernels of a workload on a chip; identical kernels are computed once."""

    def __init__(self, workload: Workload, spec: GpuSpec) -> None:
        self._workload, self._spec = workload, spec
        self._chip = spec.device()
        self._known: dict[object, KernelTime] = {}
        self._seen: list[KernelTime] = []
        self._slower: dict[str, None] = {}

    def time(self, kernel: Kernel) -> KernelTime:
        """Return the time of a kernel."""
        operators = [self._workload.operators[i] for i in kernel.operators]
        main = operators[0] if operators else None
        moved = sum(device_bytes(side, self._spec) for side in (kernel.read, kernel.written))
        key = (_signature(main), moved, len(operators), kernel.unknown)
        if key not in self._known:
            self._known[key] = self._timed(kernel, operators, moved)
        self._seen.append(self._known[key])
        return self._known[key]

    def _timed(self, kernel: Kernel, operators: list[Operator], moved: float) -> KernelTime:
        launches = max(1, len(operators))
        if not operators:
            return replace(self._memory(f"unknown {kernel.unknown}", "unknown", moved), operators=launches)
        main = operators[0]
        gemms = [o for o in operators if o.op in MATMUL_KINDS]
        if len(gemms) > 1:
            found = self._attention(gemms, moved)
        elif gemms:
            found = self._fused_gemm(main, moved)
        else:
            found = self._memory(main.type, main.op, moved)
        return replace(found, operators=launches)

    def _fused_gemm(self, o: Operator, moved: float) -> KernelTime:
        """Return the time of a GEMM with its fused operators; `moved` are the bytes without the weights."""
        spec = self._spec
        precision = spec.runs_as(max(o.weight_bits, o.activation_bits), o.float8)
        sparse = o.sparsity == "2:4" and o.weight
        found = self._gemm(o, precision, sparse, moved)
        if not sparse:
            return found
        if spec.two_four.copy_result:
            found = self._copied(found, o)
        dense = self._gemm(o, precision, False, moved)
        if launched_us(found, spec) > launched_us(dense, spec):
            self._slower[found.name] = None
        return found

    def _copied(self, gemm: KernelTime, o: Operator) -> KernelTime:
        """Add a second kernel: the sparse operand is the first one, so the result is transposed. The copy transposes
        it back and runs the operators that would be fused to a dense GEMM."""
        again = 2 * o.count * o.m * o.n * FLOAT_BYTES
        copy = self._memory("", "", again)
        return replace(
            gemm,
            floor_us=gemm.floor_us + copy.floor_us,
            work_us=gemm.work_us + copy.work_us,
            memory_us=gemm.memory_us + copy.work_us,
            bytes=gemm.bytes + again,
            launches=2,
        )

    def _gemm(self, o: Operator, precision: Precision, sparse: bool, moved: float) -> KernelTime:
        spec = self._spec
        weight = device_width(o.weight_bits, spec) * (SPARSE_BYTES[precision] if sparse else 1.0)
        widths = Widths(device_width(o.activation_bits, spec), weight if o.weight else 0.0, 0.0)
        size = np.array([[o.count, o.m, o.n, o.k]], np.float64)
        operands = o.count * o.m * o.k * widths.activation
        constants = spec.constants(precision, sparse)
        time = gemm_time(size, self._chip, spec.rate(precision, sparse), constants, widths, moved - operands)
        calibration, expected = spec.provenance(precision, sparse, o.m, o.n, o.k)
        suffix = f" {o.sparsity}" if sparse else ""
        return KernelTime(
            name=f"{o.role} {o.m}x{o.n}x{o.k}{suffix} {precision}",
            op=o.op,
            operators=1,
            floor_us=constants.floor_us,
            work_us=float(time.total_us[0]) - constants.floor_us,
            compute_us=float(time.compute_us[0]),
            memory_us=float(time.memory_us[0]),
            bytes=moved + o.count * o.k * o.n * widths.weight,
            macs=o.macs,
            precision=precision,
            sparse=sparse,
            calibration=calibration,
            expected_error=expected,
        )

    def _attention(self, gemms: list[Operator], moved: float) -> KernelTime:
        """Return the time of QK^T, softmax and PV in one kernel: a thread block holds a tile of queries and loops over
        all keys (FlashAttention-2)."""
        spec = self._spec
        precision = spec.runs_as(max(max(o.weight_bits, o.activation_bits) for o in gemms))
        rows, keys = spec.attention.tile
        scores = gemms[0]
        blocks = scores.count * ceil(scores.m / rows)
        macs = sum(rows * keys * (o.k if o is scores else o.n) for o in gemms) * ceil(scores.n / keys)
        rate = spec.rate(precision, False) * spec.clock_mhz * spec.attention.efficiency
        compute = max(1.0, blocks / spec.multiprocessors) * 2 * macs / rate
        memory = self._memory("", "", moved)
        return KernelTime(
            name=f"attention {scores.m}x{scores.n}x{scores.k} {precision}",
            op="attention",
            operators=1,
            floor_us=spec.constants(precision, False).floor_us,
            work_us=max(compute, memory.memory_us),
            compute_us=compute,
            memory_us=memory.memory_us,
            bytes=moved,
            macs=sum(o.macs for o in gemms),
            precision=precision,
        )

    def _memory(self, name: str, op: str, moved: float) -> KernelTime:
        spec = self._spec
        work = moved / (spec.memory.efficiency * spec.dram_gbps * 1e3)
        return KernelTime(name=name, op=op, operators=1, floor_us=spec.memory.floor_us, work_us=work, compute_us=0.0,
                          memory_us=work, bytes=moved)  # fmt: skip

    def main_precision(self) -> Precision:
        """Return the precision of most MACs so far."""
        macs: Counter[Precision] = Counter()
        for time in self._seen:
            if time.precision:
                macs[time.precision] += time.macs
        return macs.most_common(1)[0][0] if macs else "fp16"

    def precisions(self) -> set[str]:
        """Return the precisions so far, such as `int8 2:4`."""
        return {f"{t.precision}{' 2:4' if t.sparse else ''}" for t in self._seen if t.precision}

    def compute_us(self) -> float:
        """Return microseconds of compute so far, without memory time and launches."""
        return sum(time.compute_us for time in self._seen)

    def slower_sparse(self) -> tuple[str, ...]:
        """Return the GEMMs that are slower with 2:4 weights than with dense ones."""
        return tuple(self._slower)

    def has_float8(self) -> bool:
        """Whether the workload has GEMMs with weights in 8-bit floats."""
        return any(o.float8 for o in self._workload.operators)

    def has_int4(self) -> bool:
        """Whether the workload has GEMMs with operands of at most 4 bits."""
        return any(0 < max(o.weight_bits, o.activation_bits) <= 4 for o in self._workload.operators if o.macs)


def launched_us(time: KernelTime, spec: GpuSpec) -> float:
    """Return microseconds of a kernel with its launch."""
    own = time.floor_us + time.work_us
    if spec.launch.mode == "eager":
        return max(own, spec.launch.eager_us * max(time.operators, time.launches))
    return own + spec.launch.graph_gap_us * time.launches


def device_width(bits: int, spec: GpuSpec) -> float:
    """Return bytes of an element on the device."""
    return min(FLOAT_BYTES, max(bits, spec.narrowest) / 8)


def device_bytes(elements: Mapping[int, int], spec: GpuSpec) -> float:
    """Return device bytes of elements; `elements` maps bits in the file to counts."""
    return sum(count * device_width(bits, spec) for bits, count in elements.items())


def _signature(o: Operator | None) -> object:
    return None if o is None else (
        o.role, o.op, o.type if not o.macs else "", o.m, o.n, o.k, o.count, o.weight_bits, o.activation_bits, o.float8,
        o.sparsity,
    )  # fmt: skip
