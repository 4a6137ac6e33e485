"""Times of matrix products on an NVIDIA GPU through PyTorch: cuBLAS for dense ones, cuSPARSELt for 2:4 weights.

Back-to-back launches after a warm-up, caches warm, as in the table that the packaged constants are fitted to; replayed
from a CUDA graph, because cuSPARSELt plans every product anew, for a millisecond on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from vitslim.backends.gemm_list import Gemm
from vitslim.errors import BackendUnavailableError, UsageError
from vitslim.progress import Progress

NAME = "torch:cuda"
LAUNCHES, ROUNDS = 50, 5
ROWS_MULTIPLE = 32
"""Rows are filled up to a multiple of this: `torch._int_mm` takes no less than 17, cuSPARSELt no 197 of INT8."""


T = TypeVar("T")


def require_cuda() -> None:
    """Raise BackendUnavailableError without PyTorch or without a GPU that it can use."""
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailableError("PyTorch is not installed", "install it: pip install torch") from error
    if not torch.cuda.is_available():
        raise BackendUnavailableError("PyTorch finds no CUDA device here", "run this on a machine with an NVIDIA GPU")


def cuda_device() -> str:
    """Name of the GPU that times are of."""
    import torch

    return str(torch.cuda.get_device_name())


def measure_cuda_gemms(gemms: Sequence[Gemm], threads: int, progress: Progress) -> list[float]:  # noqa: ARG001
    """Microseconds of each product: the median over 5 rounds of 50 launches each.

    Raises UsageError for products that PyTorch has no kernel for, BackendUnavailableError without a GPU.
    """
    require_cuda()
    return [_timed(product(g)) for g in progress.track(gemms, f"{len(gemms)} products on {cuda_device()}")]


def capture(run: Callable[[], T], warmup: int) -> tuple[Any, T]:
    """A CUDA graph of what `run` launches, and what `run` gave; each replay fills that again.

    It is run `warmup` times before, so that libraries have chosen their kernels.
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


def _timed(run: Callable[[], object]) -> float:
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


def product(g: Gemm, device: str = "cuda") -> Callable[[], Any]:
    """What computes a product of random operands: activations (count, M, K) by weights (N, K), 2:4 where asked.

    INT8 gives INT32, with 2:4 weights BF16, as the libraries write them.
    """
    import torch

    if g.dtype == "INT4" or (g.sparse and (g.dtype == "FP32" or g.count > 1)):
        kind = "2:4" if g.sparse else "dense"
        raise UsageError(f"{NAME} does not time {g.count} x {g.dtype} {kind} products", "leave the row out")
    dtype = {"FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16, "INT8": torch.int8}[g.dtype]
    x, weight = (torch.randint(-8, 8, shape, device=device).to(dtype) for shape in ((g.count * g.m, g.k), (g.n, g.k)))
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
