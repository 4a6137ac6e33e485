"""Latency of GEMMs on an NVIDIA GPU through PyTorch: cuBLAS for dense weights, cuSPARSELt for 2:4 weights.

Launches follow each other after a warm-up, with warm caches, as in the measurements that the packaged constants are
fitted to. They are replayed from a CUDA graph, because cuSPARSELt plans every GEMM again, in about 1 ms on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from vitslim.backends.gemm_list import Gemm
from vitslim.errors import BackendUnavailableError, UsageError
from vitslim.progress import Progress

NAME = "torch:cuda"
INSTALL_HINT = "install it: pip install torch"
LAUNCHES, ROUNDS = 50, 5
ROWS_MULTIPLE = 32
"""Rows are padded to a multiple of this: `torch._int_mm` needs at least 17, cuSPARSELt does not take 197 of INT8."""

T = TypeVar("T")


def require_cuda() -> None:
    """Raise BackendUnavailableError without PyTorch or without a CUDA device."""
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailableError("PyTorch is not installed", INSTALL_HINT) from error
    if not torch.cuda.is_available():
        raise BackendUnavailableError("PyTorch finds no CUDA device here", "run this on a machine with an NVIDIA GPU")


def cuda_device() -> str:
    """Name of the GPU that runs the GEMMs."""
    import torch

    return str(torch.cuda.get_device_name())


def measure_cuda_gemms(gemms: Sequence[Gemm], threads: int, progress: Progress) -> list[float]:  # noqa: ARG001
    """Return the microseconds of each GEMM: the median over 5 rounds of 50 launches. `threads` has no effect.

    Raises UsageError for GEMMs without a PyTorch kernel, BackendUnavailableError without a GPU.
    """
    require_cuda()
    return [_median_us(gemm_run(g)) for g in progress.track(gemms, f"{len(gemms)} GEMMs on {cuda_device()}")]


def capture(run: Callable[[], T], warmup: int) -> tuple[Any, T]:
    """Return a CUDA graph of the launches of `run`, and the result of `run`, which each replay overwrites.

    `run` is called `warmup` times first, so that libraries have chosen their kernels.
    """
    import torch

    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warmup):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


def _median_us(run: Callable[[], object]) -> float:
    import torch

    def launches() -> None:
        for _ in range(LAUNCHES):
            run()

    graph, _ = capture(launches, 1)
    graph.replay()
    rounds = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        rounds.append(1e3 * start.elapsed_time(end) / LAUNCHES)
    return float(np.median(rounds))


def gemm_run(g: Gemm) -> Callable[[], Any]:
    """Return a function that multiplies random activations (count, M, K) by weights (N, K), dense or 2:4.

    The result of INT8 operands is INT32, with 2:4 weights BF16, as the libraries write it.
    Raises UsageError for a GEMM without a kernel.
    """
    import torch

    if g.dtype == "INT4" or (g.sparse and (g.dtype == "FP32" or g.count > 1)):
        kind = "2:4" if g.sparse else "dense"
        raise UsageError(f"{NAME} does not time {g.count} x {g.dtype} {kind} GEMMs", "remove the row")
    dtype = {"FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16, "INT8": torch.int8}[g.dtype]
    x, weight = (torch.randint(-8, 8, shape, device="cuda").to(dtype) for shape in ((g.count * g.m, g.k), (g.n, g.k)))
    if g.sparse:
        weight[:, 0::4] = weight[:, 1::4] = 0
        x = torch.nn.functional.pad(x, (0, 0, 0, -len(x) % ROWS_MULTIPLE))
        packed = torch._cslt_compress(weight)
        out = torch.bfloat16 if dtype == torch.int8 else None
        return lambda: torch._cslt_sparse_mm(packed, x.t(), out_dtype=out)
    if dtype == torch.int8:
        return lambda: torch._int_mm(x, weight.t())
    if g.count > 1:
        left, right = x.view(g.count, g.m, g.k), weight.t().expand(g.count, g.k, g.n).contiguous()
        return lambda: torch.bmm(left, right)
    return lambda: torch.mm(x, weight.t())
