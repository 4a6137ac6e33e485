"""PyTorch on an NVIDIA GPU: latency of the graphs that lie beside ONNX files. FP16, INT8 and 2:4, in CUDA graphs.

A CUDA graph replays all kernels of a model in one launch, so small batches are not limited by Python. Images lie on the
device; a run is timed from its launch until the device is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitslim.backends.measured.cuda_gemms import NAME, capture, require_cuda
from vitslim.backends.measured.interleaved import Floats, measure_interleaved
from vitslim.errors import BackendUnavailableError, InputError
from vitslim.progress import Progress
from vitslim.results import Measurement

BACKEND = NAME
UNAVAILABLE_HINT = "install it: pip install torch"
WARMUP = 3
"""Runs on a side stream before a capture, so that libraries have chosen their kernels."""
SHAPES_MAX = 1000


class CudaModel:
    """The graph beside an ONNX file, on a GPU."""

    backend = BACKEND

    def __init__(self, path: Path, threads: int) -> None:  # noqa: ARG002 - a GPU has none to choose
        """Raises InputError where no graph lies beside the file, BackendUnavailableError without a GPU."""
        require_cuda()
        from vitslim.backends.measured.cuda_layers import deploy
        from vitslim.graph.saved import GRAPH_FILE, load_graph

        if not path.with_name(GRAPH_FILE).is_file():
            raise InputError(
                f"{BACKEND} runs the graph beside '{path}', and '{GRAPH_FILE}' is missing there",
                "give the model.onnx in the folder of a run, or measure the file on onnxruntime:cpu",
            )
        graph = load_graph(path.parent)
        self._image = graph.source.image
        module, self.kernels = deploy(graph, "cuda")
        self._compiled = compiled(module, self.kernels)
        self._captured: dict[int, _Captured] = {}

    def __call__(self, images: Floats) -> Floats:
        """Logits float32 (n, classes) of images float32 (n, C, H, W). Images that were just given are not copied."""
        batch = len(images)
        if batch not in self._captured:
            self._captured[batch] = self._capture(images)
        return self._captured[batch].run(images)

    def _capture(self, images: Floats) -> _Captured:
        """Raises BackendUnavailableError where a library of the GPU has no kernel for a layer at this batch size."""
        try:
            return _Captured(self._compiled, images)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            message = f"{BACKEND} cannot run this graph in batches of {len(images)}: {reason}"
            raise BackendUnavailableError(message, "measure other batches, or export without 2:4") from error

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of an input of `batch` images."""
        return (batch, *self._image)


def compiled(module: Any, kernels: Mapping[str, str]) -> Any:
    """A module that is compiled anew for each batch size, so that elementwise operations share kernels.

    For products of codes Triton's kernels are tried beside the one of cuBLAS, which is slower than its products in FP16
    on an H200.
    """
    import torch

    autotune: dict[str, Any] = {"max_autotune_gemm": True} if "int8" in kernels.values() else {}
    return torch.compile(module, dynamic=False, options=autotune)


class _Captured:
    """A model captured for one batch size."""

    def __init__(self, module: Any, images: Floats) -> None:
        import torch

        self._images, self._input = images, torch.from_numpy(images).to("cuda", torch.float16)
        # Of more shapes than its limit PyTorch compiles no further one, and says nothing.
        with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=SHAPES_MAX):
            self._graph, self._output = capture(lambda: module(self._input), WARMUP)

    def run(self, images: Floats) -> Floats:
        import torch

        if images is not self._images:
            self._images = images
            self._input.copy_(torch.from_numpy(images))
        self._graph.replay()
        torch.cuda.synchronize()
        logits: Floats = self._output.float().cpu().numpy()
        return logits


def measure_latency(
    files: Mapping[str, Path], baseline: str, batches: Sequence[int], threads: Sequence[int], seconds: float,
    progress: Progress,
) -> dict[str, tuple[Measurement, ...]]:  # fmt: skip
    """Latency of the graph beside each file at each batch size; see `measure_interleaved`. Speed-ups are over the
    baseline in FP16; the numbers of threads change nothing, and the first is taken.

    Raises InputError for a file without a graph, UsageError for an unknown baseline, BackendUnavailableError without a
    GPU.
    """
    return measure_interleaved(CudaModel, files, baseline, batches, threads[:1], seconds, progress)
