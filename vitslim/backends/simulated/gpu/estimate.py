"""Estimate of a workload on a GPU: each kernel by the tensor-core model or by its bytes, and its launch."""

from __future__ import annotations

from dataclasses import dataclass

from vitslim.backends.simulated.gemm_groups import unknown_words
from vitslim.backends.simulated.gpu.kernel_times import KernelTime, Timer, launched_us
from vitslim.backends.simulated.gpu.spec import GpuSpec
from vitslim.results import Bound, Energy, Estimate, EstimateRow, Roofline, Utilization
from vitslim.units import FLOPS_PER_MAC
from vitslim.workload import Workload

ASSUMED = (
    "launch.graph_gap_us", "memory.floor_us", "memory.efficiency", "attention.efficiency", "two_four.copy_result",
    "power.fraction",
)  # fmt: skip
LAUNCH_SHARE = 0.5
"""A row is bound by launches if they take more than this fraction of its time."""


@dataclass
class _Row:
    """Totals of one class of kernels."""

    kernel: KernelTime
    """The first kernel of the class."""
    count: int = 0
    launches: int = 0
    total_us: float = 0.0
    work_us: float = 0.0
    compute_us: float = 0.0
    memory_us: float = 0.0
    bytes: float = 0.0
    macs: int = 0

    def add(self, time: KernelTime, total_us: float) -> None:
        """Add a kernel and its time with the launch."""
        self.count += 1
        self.launches += time.launches
        self.total_us += total_us
        self.work_us += time.work_us
        self.compute_us += time.compute_us
        self.memory_us += time.memory_us
        self.bytes += time.bytes
        self.macs += time.macs


def estimate(workload: Workload, spec: GpuSpec, backend: str = "sim:a100") -> Estimate:
    """Return latency and energy of a workload on one GPU. `Workload.kernels` gives the fused kernels, in sequence.

    With `launch.mode: graph` the time of a kernel is its own and the gap to the next one; with `eager` every operator
    is launched by itself and takes at least the launch time. Both use the traffic of the fused kernels.
    """
    timer = Timer(workload, spec)
    rows: dict[str, _Row] = {}
    for kernel in workload.kernels:
        time = timer.time(kernel)
        rows.setdefault(time.name, _Row(time)).add(time, launched_us(time, spec))
    total_us = sum(row.total_us for row in rows.values())
    launches = total_us - sum(row.work_us for row in rows.values())
    gemms = sum(row.work_us for row in rows.values() if row.macs)
    precision = timer.main_precision()
    return Estimate(
        backend=backend,
        batch=workload.batch,
        latency_ms=total_us / 1e3,
        rows=tuple(_row(name, row, spec) for name, row in rows.items()),
        terms_ms={"launch": launches / 1e3, "GEMMs": gemms / 1e3,
                  "memory": (total_us - launches - gemms) / 1e3},
        kernels=sum(row.launches for row in rows.values()),
        utilization=_utilization(workload, spec.peak_tops(precision), timer.compute_us(), gemms, total_us),
        energy=_energy(total_us, spec),
        roofline=Roofline(peak_tops=spec.peak_tops(precision), bandwidth_gbps=spec.dram_gbps, precision=precision),
        settings=_settings(workload, spec, timer),
        calibration=_source(spec),
        expected_error=_expected(spec),
        assumed=ASSUMED,
    )  # fmt: skip


def _utilization(
    workload: Workload, peak_tops: float, compute_us: float, gemms_us: float, total_us: float
) -> Utilization:
    """Return MACs over peak MACs: in compute time, in GEMM time with memory stalls, and in the whole time."""
    used = FLOPS_PER_MAC * workload.macs / (peak_tops * 1e6)
    shares = [used / max(used, us, 1e-12) for us in (compute_us, gemms_us, total_us)]
    return Utilization(ideal=shares[0], with_stalls=shares[1], with_loading=shares[2])


def _row(name: str, row: _Row, spec: GpuSpec) -> EstimateRow:
    peak = spec.peak_tops(row.kernel.precision) if row.kernel.precision else 0.0
    used = FLOPS_PER_MAC * row.macs / (peak * 1e6) if peak else 0.0
    bound: Bound = "compute" if row.compute_us >= row.memory_us else "bandwidth"
    if row.total_us - row.work_us > LAUNCH_SHARE * row.total_us:
        bound = "launch"
    return EstimateRow(
        name=name,
        op=row.kernel.op,
        count=row.count,
        macs=row.macs,
        latency_us=row.total_us,
        utilization=used / row.total_us,
        bound=bound,
        dram_bytes=round(row.bytes),
        energy_uj=row.total_us * spec.power.limit_w * spec.power.fraction,
        calibration=row.kernel.calibration,
        expected_error=row.kernel.expected_error,
    )


def _energy(total_us: float, spec: GpuSpec) -> Energy:
    """Return board power times time."""
    watts = spec.power.limit_w * spec.power.fraction
    return Energy(
        table="board power",
        node=spec.node,
        source=f"board limit {spec.power.limit_w:g} W times {spec.power.fraction:g}",
        parts_mj={"board": watts * total_us / 1e3},
        assumed=("power.fraction",),
    )


def _source(spec: GpuSpec) -> str:
    fit = spec.calibration
    if not spec.calibrated:
        return f"uncalibrated (efficiencies of {spec.calibrated_on}, rates of {spec.chip})"
    return f"{fit.rows} measured GEMMs ({fit.source}), fitted {fit.date}"


def _expected(spec: GpuSpec) -> str:
    if not spec.calibrated:
        return "unknown"
    pooled = spec.calibration.errors["pooled"]
    return (
        f"GEMMs: mean {pooled.mean:.1f} %, median {pooled.median:.1f} %, 90th percentile {pooled.p90:.1f} % on "
        "unseen shapes; speedups ±10 %; launches, attention and memory kernels are assumed"
    )


def _settings(workload: Workload, spec: GpuSpec, timer: Timer) -> dict[str, str]:
    launch = spec.launch
    graph = f"graph, {launch.graph_gap_us:g} us between kernels"
    settings = {
        "chip": spec.chip,
        "launch": graph if launch.mode == "graph" else f"eager, {launch.eager_us:g} us per operator",
        "2:4 result": "transposed by a second kernel" if spec.two_four.copy_result else "used directly",
        "runs as": ", ".join(sorted(timer.precisions())),
        "2:4 slower than dense": ", ".join(timer.slower_sparse()) or "none",
    }
    if spec.ops.int4 is None and timer.has_int4():
        settings["int4"] = f"runs as int8: {spec.chip} has no INT4 instruction"
    if spec.ops.fp8 is None and timer.has_float8():
        settings["fp8"] = f"runs as fp16: {spec.chip} has no FP8 instruction"
    if workload.unknown:
        settings["unknown operators, by their bytes"] = ", ".join(unknown_words(workload))
    return settings
