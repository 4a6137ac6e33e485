"""Time of single kernels on a GPU: products and fused attention on tensor cores, everything else by its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from vitslim.backends.simulated.gpu_spec import GpuSpec, Precision
from vitslim.backends.simulated.tensor_core import Widths, gemm_time
from vitslim.workload import Kernel, Operator, Workload
from vitslim.workload.operators import MATMUL_KINDS

FLOAT_BYTES = 2.0
"""A GPU holds what the file has in 32 bits as FP16, its usual dense format."""
SPARSE_BYTES: dict[Precision, float] = {"fp16": 9 / 16, "int8": 5 / 8, "int4": 5 / 8}
"""What a 2:4 weight takes of a dense one: half of the values and a 2-bit index for each kept one."""


@dataclass(frozen=True)
class KernelTime:
    """One kernel: what it is, and microseconds without its launch."""

    name: str
    op: str
    operators: int
    """How many launches it would be without fusion."""
    floor_us: float
    """What it takes however little it does."""
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
    """Times kernels of one workload on one chip; equal ones once."""

    def __init__(self, workload: Workload, spec: GpuSpec) -> None:
        self._workload, self._spec = workload, spec
        self._chip = spec.device()
        self._known: dict[object, KernelTime] = {}
        self._seen: list[KernelTime] = []
        self._slower: dict[str, None] = {}

    def time(self, kernel: Kernel) -> KernelTime:
        """Time of a kernel."""
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
        products = [o for o in operators if o.op in MATMUL_KINDS]
        if len(products) > 1:
            found = self._attention(products, moved)
        elif products:
            found = self._product(main, moved)
        else:
            found = self._memory(main.type, main.op, moved)
        return replace(found, operators=launches)

    def _product(self, o: Operator, moved: float) -> KernelTime:
        """A product and what is fused to it; the weights come on top of `moved`."""
        spec = self._spec
        precision = spec.runs_as(max(o.weight_bits, o.activation_bits))
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

    def _copied(self, product: KernelTime, o: Operator) -> KernelTime:
        """The product and a second kernel: the sparse operand comes first, so the result comes out transposed, and
        what would be fused to a dense product is done as the result is copied back."""
        again = 2 * o.count * o.m * o.n * FLOAT_BYTES
        copy = self._memory("", "", again)
        return replace(
            product,
            floor_us=product.floor_us + copy.floor_us,
            work_us=product.work_us + copy.work_us,
            memory_us=product.memory_us + copy.work_us,
            bytes=product.bytes + again,
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

    def _attention(self, products: list[Operator], moved: float) -> KernelTime:
        """Scores, softmax and values in one kernel: a thread block holds some queries and goes over all keys."""
        spec = self._spec
        precision = spec.runs_as(max(max(o.weight_bits, o.activation_bits) for o in products))
        rows, keys = spec.attention.tile
        scores = products[0]
        blocks = scores.count * ceil(scores.m / rows)
        macs = sum(rows * keys * (o.k if o is scores else o.n) for o in products) * ceil(scores.n / keys)
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
            macs=sum(o.macs for o in products),
            precision=precision,
        )

    def _memory(self, name: str, op: str, moved: float) -> KernelTime:
        spec = self._spec
        work = moved / (spec.memory.efficiency * spec.dram_gbps * 1e3)
        return KernelTime(name=name, op=op, operators=1, floor_us=spec.memory.floor_us, work_us=work, compute_us=0.0,
                          memory_us=work, bytes=moved)  # fmt: skip

    def main_precision(self) -> Precision:
        """The precision of most MACs so far."""
        macs: Counter[Precision] = Counter()
        for time in self._seen:
            if time.precision:
                macs[time.precision] += time.macs
        return macs.most_common(1)[0][0] if macs else "fp16"

    def precisions(self) -> set[str]:
        """Precisions that occurred, with 2:4 where it did."""
        return {f"{t.precision}{' 2:4' if t.sparse else ''}" for t in self._seen if t.precision}

    def compute_us(self) -> float:
        """Microseconds of arithmetic alone."""
        return sum(time.compute_us for time in self._seen)

    def slower_sparse(self) -> tuple[str, ...]:
        """Products that 2:4 makes slower."""
        return tuple(self._slower)

    def narrow(self) -> bool:
        """Whether the model has products of operands of 4 bits or fewer."""
        return any(0 < max(o.weight_bits, o.activation_bits) <= 4 for o in self._workload.operators if o.macs)


def launched_us(time: KernelTime, spec: GpuSpec) -> float:
    """Microseconds of a kernel with its launch."""
    own = time.floor_us + time.work_us
    if spec.launch.mode == "eager":
        return max(own, spec.launch.eager_us * max(time.operators, time.launches))
    return own + spec.launch.graph_gap_us * time.launches


def device_width(bits: int, spec: GpuSpec) -> float:
    """Bytes of an element on the device."""
    return min(FLOAT_BYTES, max(bits, spec.narrowest) / 8)


def device_bytes(elements: Mapping[int, int], spec: GpuSpec) -> float:
    """Bytes on the device of elements by their bits in the file."""
    return sum(count * device_width(bits, spec) for bits, count in elements.items())


def _signature(o: Operator | None) -> object:
    return None if o is None else (
        o.role, o.op, o.type if not o.macs else "", o.m, o.n, o.k, o.count, o.weight_bits, o.activation_bits, o.sparsity
    )  # fmt: skip
