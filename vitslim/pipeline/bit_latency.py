"""Latency of matmuls with operands of few bits, for stages whose target is a latency."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from vitslim.backends.matmul_times import batched
from vitslim.backends.registry import Simulated, parse_backend
from vitslim.backends.simulated.simulator import Simulator
from vitslim.recipe.stage_config import StageConfig
from vitslim.recipe.stages import Nipq
from vitslim.sparsity import TWO_FOUR
from vitslim.workload import Kernel, Operator, Workload

if TYPE_CHECKING:
    from vitslim.latency_grid import Shape
    from vitslim.stages.contract import GemmLatency, SizedGemm

RESULT_BITS = 16


def gemm_latency(config: StageConfig) -> GemmLatency | None:
    """Return the latency of matmuls on the simulated target that a stage names; None without a latency target."""
    target = config.target if isinstance(config, Nipq) else None
    if target is None or target.latency is None or target.backend is None:
        return None
    backend = parse_backend(target.backend)
    if not isinstance(backend, Simulated):
        raise TypeError(f"'{target.backend}' is not a simulated target")  # the recipe was checked
    return simulated_latency(backend.simulator, target.batch)


def simulated_latency(simulator: Simulator, batch: int) -> GemmLatency:
    """Return a function from matmuls to their microseconds as kernels of a model: launches and traffic included.

    Both operands of a matmul have its bits; the result is written in 16 bits.
    """

    @cache
    def microseconds(shape: Shape, bits: int, sparse: bool) -> float:
        return 1e3 * simulator.estimate(_workload(batched(shape, batch), bits, sparse, batch)).latency_ms

    def latency(gemms: Sequence[SizedGemm]) -> list[float]:
        return [microseconds(gemm.shape, gemm.bits, gemm.sparse) for gemm in gemms]

    return latency


def _workload(shape: Shape, bits: int, sparse: bool, batch: int) -> Workload:
    """Return a model of one matmul; the second operand counts as a weight."""
    count, rows, reduce, columns = shape
    operator = Operator(
        name="matmul", op="gemm", type="MatMul", m=rows, n=columns, k=reduce, count=count,
        elements=count * rows * columns, weight=True, weight_bits=bits, activation_bits=bits,
        sparsity=TWO_FOUR if sparse else "", role="matmul",
    )  # fmt: skip
    kernel = Kernel((0,), {bits: count * rows * reduce}, {RESULT_BITS: count * rows * columns})
    return Workload(batch, (operator,), params=reduce * columns, file_bytes=0, kernels=(kernel,))
