"""Estimate of a whole workload on a systolic array: one row for each class of identical operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitslim.backends.simulated.spec import SystolicSpec
from vitslim.backends.simulated.systolic import (
    Array,
    Ints,
    compacted_k,
    compute_cycles,
    overall_utilisation,
    sparse_sram_traffic,
    sram_traffic,
)
from vitslim.results import Estimate, EstimateRow
from vitslim.workload import Operator, Workload

EXACT = "compute cycles exact against SCALE-Sim v3.0.0; memory time not modelled, vector unit assumed"
DERIVED = "overlapped folds are derived, not calibrated; memory time not modelled, vector unit assumed"
PRODUCTS = ("gemm", "conv", "attention")
VECTOR = ("softmax", "norm", "elementwise")
GELU_LIKE = {"Elu", "Erf", "Exp", "Gelu", "HardSwish", "Log", "Mish", "Selu", "Sigmoid", "Softplus", "Swish", "Tanh"}


@dataclass(frozen=True)
class _Group:
    """Identical products; `count` of them in all."""

    role: str
    op: str
    m: int
    n: int
    k: int
    sparsity: str
    count: int

    @property
    def name(self) -> str:
        return f"{self.role} {self.m}x{self.n}x{self.k}{' ' + self.sparsity if self.sparsity else ''}"


def estimate(workload: Workload, spec: SystolicSpec, backend: str = "sim:systolic") -> Estimate:
    """Cycles and time of a workload on one systolic array with a vector unit beside it, nothing overlapping.

    Rows: identical matrix products together (M x N x K; patch embedding and head are products of their own), then
    the vector operators by kind. Data movement, token selection and Q/DQ take no cycles; the settings say so.
    """
    groups = _grouped(workload.operators)
    array = Array(*spec.array, spec.dataflow)
    sizes = np.array([(g.m, g.n, g.k, g.count) for g in groups], np.int64).reshape(-1, 4)
    sparse = np.array([g.sparsity == "2:4" for g in groups], bool)
    cycles, dense_cycles, words = _array_work(sizes, sparse, array, spec)
    utilisation = overall_utilisation(sizes[:, 0], sizes[:, 1], sizes[:, 2], array, cycles)
    rows = [
        EstimateRow(name=g.name, op=g.op, count=g.count, macs=g.m * g.n * g.k * g.count,
                    cycles=int(c) * g.count, utilisation=float(u))
        for g, c, u in zip(groups, cycles, utilisation, strict=True)
    ]  # fmt: skip
    array_cycles = sum(row.cycles for row in rows)
    rows += _vector_rows(workload.operators, spec)
    total = sum(row.cycles for row in rows)
    settings = _settings(workload, spec) | {
        "array_cycles": f"{array_cycles}",
        "vector_cycles": f"{total - array_cycles}",
        "array_utilisation": f"{workload.macs / max(1, array_cycles * array.macs_per_cycle):.4f} of dense MACs",
        "sram_words": f"{int((words * sizes[:, 3]).sum())}",
        "2:4 without gain": ", ".join(g.name for g, s, c, d in zip(groups, sparse, cycles, dense_cycles, strict=True)
                                      if s and c == d) or "none",
    }  # fmt: skip
    return Estimate(
        backend=backend,
        batch=workload.batch,
        cycles=total,
        latency_ms=total / (spec.clock_ghz * 1e6),
        rows=tuple(rows),
        settings=settings,
        calibration="SCALE-Sim v3.0.0 (closed form)" if spec.overlap == "none" else "uncalibrated",
        expected_error=EXACT if spec.overlap == "none" else DERIVED,
        assumed=("vector.lanes", "vector.passes"),
    )


def _grouped(operators: Sequence[Operator]) -> list[_Group]:
    counts: Counter[tuple[str, str, int, int, int, str]] = Counter()
    for o in operators:
        if o.op in PRODUCTS:
            counts[o.role, o.op, o.m, o.n, o.k, o.sparsity] += o.count
    return [_Group(*key, count=count) for key, count in counts.items()]


def _array_work(
    sizes: Ints, sparse: np.ndarray[tuple[int], np.dtype[np.bool_]], array: Array, spec: SystolicSpec
) -> tuple[Ints, Ints, Ints]:  # fmt: skip
    """Cycles with 2:4 used, cycles without, and SRAM words, for each product."""
    m, n, k = sizes[:, 0], sizes[:, 1], sizes[:, 2]
    dense = compute_cycles(m, n, k, array, spec.overlap)
    words = sram_traffic(m, n, k, array, spec.counters).words
    if spec.sparsity == "off" or spec.dataflow != "ws":
        return dense, dense, words
    compact = compute_cycles(m, n, compacted_k(k, spec.sparsity), array, spec.overlap)
    sparse_words = sparse_sram_traffic(m, n, k, array, spec.sparsity, spec.counters).words
    return np.where(sparse, compact, dense), dense, np.where(sparse, sparse_words, words)


def _vector_rows(operators: Sequence[Operator], spec: SystolicSpec) -> list[EstimateRow]:
    """Elements times passes over lanes, rounded up for each operator."""
    passes = spec.vector.passes.model_dump()
    cycles: Counter[tuple[str, str]] = Counter()
    counts: Counter[tuple[str, str]] = Counter()
    for o in operators:
        if o.op in VECTOR:
            unit = o.op if o.op != "elementwise" else "gelu" if o.type in GELU_LIKE else "add"
            key = (o.op, f"{o.type} on vector unit")
            cycles[key] += -(-o.elements * passes[unit] // spec.lanes)
            counts[key] += 1
    return [
        EstimateRow(name=name, op=op, count=counts[op, name], macs=0, cycles=c, utilisation=0.0)
        for (op, name), c in sorted(cycles.items(), key=lambda item: VECTOR.index(item[0][0]))
    ]


def _settings(workload: Workload, spec: SystolicSpec) -> dict[str, str]:
    free = Counter(o.op for o in workload.operators if o.op not in (*PRODUCTS, *VECTOR))
    unknown = "".join(f", unknown {name} ({count})" for name, count in workload.unknown.items())
    passes = spec.vector.passes.model_dump().items()
    return {
        "array": f"{spec.array[0]}x{spec.array[1]}",
        "dataflow": spec.dataflow,
        "overlap": spec.overlap,
        "counters": spec.counters,
        "sparsity": spec.sparsity if spec.dataflow == "ws" else "off (2:4 needs dataflow ws)",
        "clock_ghz": f"{spec.clock_ghz:g}",
        "vector": f"{spec.lanes} lanes; passes: " + ", ".join(f"{name} {count}" for name, count in passes),
        "not modelled": "memory time" + "".join(f", {op} ({count})" for op, count in sorted(free.items())) + unknown,
    }
