"""Times of a list of matrix products on ONNX Runtime, one model with one MatMul for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.measured.products import NOTHING, ROUNDS, single_product, timed_seconds
from vitslim.errors import UsageError
from vitslim.progress import Progress


def measure_gemms(gemms: Sequence[Gemm], threads: int, progress: Progress) -> list[float]:
    """Median microseconds of each product over 8 interleaved rounds, without the overhead of a call.

    Raises UsageError for anything but dense FP32: ONNX Runtime multiplies nothing else on a CPU as it stands here.
    """
    for g in gemms:
        if g.dtype != "FP32" or g.sparse:
            raise UsageError(
                f"onnxruntime:cpu does not time {g.dtype} {'2:4' if g.sparse else 'dense'} products",
                "give dtype FP32 and sparse 0, or a simulated backend such as sim:a100",
            )
    shapes = {(g.count, g.m, g.k, g.n): None for g in gemms}
    timed = [NOTHING, *shapes]
    runs: dict[tuple[int, int, int, int], list[float]] = {shape: [] for shape in timed}
    steps = [shape for _ in range(ROUNDS) for shape in timed]
    for shape in progress.track(steps, f"{len(shapes)} products, threads {threads}"):
        runs[shape] += timed_seconds(single_product(shape, threads))
    median = {shape: 1e6 * float(np.median(times)) for shape, times in runs.items()}
    return [max(0.001, median[g.count, g.m, g.k, g.n] - median[NOTHING]) for g in gemms]
