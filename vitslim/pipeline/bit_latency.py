"""Latency of matmuls with operands of few bits, for stages whose target is a latency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.matmul_times import batched
from vitslim.backends.registry import Simulated, parse_backend
from vitslim.recipe.stage_config import StageConfig
from vitslim.recipe.stages import Nipq

if TYPE_CHECKING:
    from vitslim.stages.contract import GemmLatency, SizedGemm

DTYPES = {4: "INT4", 8: "INT8", 16: "FP16"}


def gemm_latency(config: StageConfig) -> GemmLatency | None:
    """Return the latency of matmuls on the simulated target that a stage names; None without a latency target."""
    target = config.target if isinstance(config, Nipq) else None
    if target is None or target.latency is None or target.backend is None:
        return None
    backend = parse_backend(target.backend)
    if not isinstance(backend, Simulated):
        raise TypeError(f"'{target.backend}' is not a simulated target")  # the recipe was checked
    simulator, batch = backend.simulator, target.batch

    def latency(gemms: Sequence[SizedGemm]) -> list[float]:
        sized = []
        for shape, bits, sparse in gemms:
            count, rows, reduce, columns = batched(shape, batch)
            sized.append(Gemm(rows, columns, reduce, DTYPES[bits], sparse, count))
        return [float(us) for us in simulator.gemm_us(sized)]

    return latency
