"""Estimate of a workload on a systolic array: one row for each class of identical operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitslim.backends.simulated.energy import EnergyTable, Work, energy_of, load_table, parts_pj
from vitslim.backends.simulated.gemm_groups import Group, grouped, not_modeled
from vitslim.backends.simulated.simulator import Bools, Floats, Ints
from vitslim.backends.simulated.systolic.cycles import (
    Array,
    compacted_k,
    compute_cycles,
    overall_utilization,
    sparse_sram_traffic,
    sram_traffic,
)
from vitslim.backends.simulated.systolic.dram import dram_traffic, edge_cycles, stall_cycles
from vitslim.backends.simulated.systolic.spec import SystolicSpec
from vitslim.results import Energy, Estimate, EstimateRow, Roofline, Utilization
from vitslim.workload import Operator, Workload

CLOSED_FORM = "SCALE-Sim v3.0.0 (closed form)"
EXACT = "compute cycles exact against SCALE-Sim v3.0.0; DRAM time derived, vector unit assumed"
DERIVED = "overlapped folds are derived, not calibrated; DRAM time derived, vector unit assumed"
VECTOR = ("softmax", "norm", "elementwise")
GELU_LIKE = {"Elu", "Erf", "Exp", "Gelu", "HardSwish", "Log", "Mish", "Selu", "Sigmoid", "Softplus", "Swish", "Tanh"}


@dataclass(frozen=True)
class ArrayWork:
    """Work of the array for one GEMM of each class; arrays (n,)."""

    cycles: Ints
    dense_cycles: Ints
    """Cycles with dense weights."""
    stalls: Ints
    """Cycles that the array waits for DRAM."""
    edges: Ints
    """Cycles of the first load and the last store."""
    macs: Floats
    """Executed MACs, without skipped zeros."""
    activation_bits: Floats
    weight_bits: Floats
    output_bits: Floats
    dram_bytes: Floats
    words: Ints
    """SRAM words by `counters` of the settings."""


def estimate(workload: Workload, spec: SystolicSpec, backend: str = "sim:systolic") -> Estimate:
    """Return cycles, latency and energy of a workload on one array with a vector unit, operators in sequence.

    Rows are classes of identical GEMMs, then the vector operators by kind. Data movement, token selection and Q/DQ take
    no cycles; `settings` of the estimate lists them under `not modeled`.
    """
    groups = grouped(workload.operators)
    counts = np.array([g.count for g in groups], np.int64)
    sizes = np.array([(g.m, g.n, g.k) for g in groups], np.int64).reshape(-1, 3)
    work = array_work(sizes, np.array([g.sparsity == "2:4" for g in groups], bool), spec)
    table = None if spec.energy == "none" else load_table(spec.energy)
    energies = [_parts(work, i, spec, table) for i in range(len(groups))]
    rows = [_gemm_row(g, work, i, spec, energies[i]) for i, g in enumerate(groups)]
    rows += _vector_rows(workload.operators, spec)
    array_cycles, stalls = int((work.cycles * counts).sum()), int((work.stalls * counts).sum())
    total = sum(row.cycles or 0 for row in rows)
    to_ms = 1 / (spec.clock_ghz * 1e6)
    exact = spec.overlap == "none"
    return Estimate(
        backend=backend,
        batch=workload.batch,
        cycles=total,
        stall_cycles=stalls,
        latency_ms=(total + stalls) * to_ms,
        rows=tuple(rows),
        terms_ms={"array": array_cycles * to_ms, "DRAM stalls": stalls * to_ms,
                  "vector unit": (total - array_cycles) * to_ms},
        utilization=_utilization(workload.macs, array_cycles, stalls, int((work.edges * counts).sum()), spec),
        energy=_energy(energies, groups, spec, table),
        roofline=Roofline(peak_tops=2 * spec.array[0] * spec.array[1] * spec.clock_ghz / 1e3,
                          bandwidth_gbps=spec.dram_gbps, precision=f"int{spec.bits.act}"),
        settings=_settings(workload, spec) | _findings(groups, work, counts),
        calibration=CLOSED_FORM if exact else "uncalibrated",
        expected_error=EXACT if exact else DERIVED,
        assumed=("vector.lanes", "vector.passes"),
    )  # fmt: skip


def array_work(sizes: Ints, two_four: Bools, spec: SystolicSpec) -> ArrayWork:
    """Return cycles and traffic of each GEMM. `sizes` int64 (n, 3): M, N, K; `two_four` bool (n,): 2:4 weights."""
    m, n, k = sizes.T
    array = Array(*spec.array, spec.dataflow)
    dense_cycles = compute_cycles(m, n, k, array, spec.overlap)
    sparse = two_four & spec.uses_two_four
    cycles, clean, words = dense_cycles, sram_traffic(m, n, k, array), sram_traffic(m, n, k, array, spec.counters).words
    kept = np.where(sparse, spec.pattern[0] / spec.pattern[1], 1.0)
    inputs, weights, writes, reads = clean.input_reads, clean.weight_reads, clean.output_writes, clean.output_reads
    if spec.sparsity != "off" and sparse.any():
        mapping = spec.sparsity
        compact = compacted_k(k, mapping, spec.pattern)
        cycles = np.where(sparse, compute_cycles(m, n, compact, array, spec.overlap), dense_cycles)
        found = sparse_sram_traffic(m, n, k, array, mapping, "clean", spec.pattern)
        inputs = np.where(sparse, found.input_reads, inputs)
        weights = np.where(sparse, found.weight_reads, weights)
        writes = np.where(sparse, found.output_writes, writes)
        reads = np.where(sparse, found.output_reads, reads)
        words = np.where(sparse, sparse_sram_traffic(m, n, k, array, mapping, spec.counters, spec.pattern).words, words)
    traffic = dram_traffic(sizes, sparse, spec)
    results = m * n
    return ArrayWork(
        cycles=cycles,
        dense_cycles=dense_cycles,
        stalls=stall_cycles(cycles, traffic, spec),
        edges=edge_cycles(sizes, traffic, spec),
        macs=kept * m * n * k,
        activation_bits=np.asarray(inputs * float(spec.bits.act), np.float64),
        weight_bits=np.asarray(weights * float(spec.bits.weight), np.float64),
        output_bits=results * float(spec.bits.out) + (writes - results + reads) * float(spec.bits.acc),
        dram_bytes=traffic.total,
        words=words,
    )


def _parts(work: ArrayWork, index: int, spec: SystolicSpec, table: EnergyTable | None) -> dict[str, float]:
    """Return picojoules of one GEMM by part; empty without an energy table."""
    if table is None:
        return {}
    one = Work(
        float(work.macs[index]), float(work.activation_bits[index]), float(work.weight_bits[index]),
        float(work.output_bits[index]), 8 * float(work.dram_bytes[index]),
    )  # fmt: skip
    sram = (spec.sram_kb.ifmap, spec.sram_kb.filter, spec.sram_kb.ofmap)
    return parts_pj(one, table, max(spec.bits.act, spec.bits.weight), sram)


def _gemm_row(g: Group, work: ArrayWork, i: int, spec: SystolicSpec, parts: dict[str, float]) -> EstimateRow:
    cycles, stalls = int(work.cycles[i]), int(work.stalls[i])
    utilization = overall_utilization(g.m, g.n, g.k, Array(*spec.array, spec.dataflow), np.maximum(1, cycles))
    waiting = work.dram_bytes[i] / spec.bytes_per_cycle > cycles
    exact = spec.overlap == "none"
    return EstimateRow(
        name=g.name,
        op=g.op,
        count=g.count,
        macs=g.m * g.n * g.k * g.count,
        cycles=cycles * g.count,
        stall_cycles=stalls * g.count,
        latency_us=(cycles + stalls) * g.count / (spec.clock_ghz * 1e3),
        utilization=float(utilization),
        bound="bandwidth" if waiting else "compute",
        dram_bytes=round(float(work.dram_bytes[i]) * g.count),
        energy_uj=sum(parts.values()) * g.count / 1e6 if parts else None,
        calibration=CLOSED_FORM if exact else "uncalibrated",
        expected_error="cycles exact, DRAM derived" if exact else "unknown",
    )


def _energy(
    energies: Sequence[dict[str, float]], groups: Sequence[Group], spec: SystolicSpec, table: EnergyTable | None
) -> Energy | None:
    if table is None:
        return None
    totals: dict[str, float] = {}
    for parts, group in zip(energies, groups, strict=True):
        for part, value in parts.items():
            totals[part] = totals.get(part, 0.0) + value * group.count
    return energy_of(spec.energy, table, totals, max(spec.bits.act, spec.bits.weight))


def _utilization(macs: int, cycles: int, stalls: int, edges: int, spec: SystolicSpec) -> Utilization:
    peak = spec.array[0] * spec.array[1]
    waited = cycles + stalls + (edges if spec.overlap == "double_buffer" else 0)  # otherwise part of the stalls
    return Utilization(
        ideal=macs / max(1, cycles * peak),
        with_stalls=macs / max(1, (cycles + stalls) * peak),
        with_loading=macs / max(1, waited * peak),
    )


def _vector_rows(operators: Sequence[Operator], spec: SystolicSpec) -> list[EstimateRow]:
    """Return rows of vector operators: elements times passes over lanes, rounded up for each operator."""
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
        EstimateRow(name=name, op=op, count=counts[op, name], macs=0, cycles=c, stall_cycles=0, utilization=0.0,
                    latency_us=c / (spec.clock_ghz * 1e3), bound="compute", calibration="assumed",
                    expected_error="unknown")
        for (op, name), c in sorted(cycles.items(), key=lambda item: VECTOR.index(item[0][0]))
    ]  # fmt: skip


def _findings(groups: Sequence[Group], work: ArrayWork, counts: Ints) -> dict[str, str]:
    """Return further results: traffic totals, and GEMMs whose 2:4 weights save no cycles."""
    idle = [g.name for g, c, d in zip(groups, work.cycles, work.dense_cycles, strict=True)
            if g.sparsity == "2:4" and c == d]  # fmt: skip
    return {
        "sram_words": f"{int((work.words * counts).sum())}",
        "dram_bytes": f"{int((work.dram_bytes * counts).sum())}",
        "2:4 without gain": ", ".join(idle) or "none",
    }


def _sparsity(spec: SystolicSpec) -> str:
    if spec.sparsity == "off" or spec.uses_two_four:
        return f"{spec.sparsity}{' {}:{}'.format(*spec.pattern) if spec.uses_two_four else ''}"
    return "off (2:4 needs dataflow ws, and a pattern that allows it such as [2, 4] or [4, 8])"


def _settings(workload: Workload, spec: SystolicSpec) -> dict[str, str]:
    passes = ", ".join(f"{name} {count}" for name, count in spec.vector.passes.model_dump().items())
    sram, bits = spec.sram_kb, spec.bits
    return {
        "array": f"{spec.array[0]}x{spec.array[1]}",
        "dataflow": spec.dataflow,
        "overlap": spec.overlap,
        "counters": spec.counters,
        "sparsity": _sparsity(spec),
        "clock_ghz": f"{spec.clock_ghz:g}",
        "sram_kb": f"{sram.ifmap}/{sram.filter}/{sram.ofmap}",
        "dram_gbps": f"{spec.dram_gbps:g}",
        "bits": f"act {bits.act}, weight {bits.weight}, acc {bits.acc}, out {bits.out}",
        "energy": spec.energy if spec.energy != "none" else "none (name a table, such as energy: horowitz45)",
        "vector": f"{spec.lanes} lanes; passes: {passes}",
        "not modeled": not_modeled(workload, (*VECTOR,)) or "nothing",
    }
