"""PyTorch on an NVIDIA GPU: it runs the graphs saved beside ONNX files, in FP16, INT8 and 2:4, as CUDA graphs.

A CUDA graph replays all kernels of a model in one launch, so small batches are not limited by Python. Images stay on
the device; a run is timed from its launch until the device has finished. Speedups are over the baseline in FP16.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitslim.backends.measured.cuda.gemm_timing import INSTALL_HINT, NAME, capture, measure_cuda_gemms, require_cuda
from vitslim.backends.measured.runtime import Runtime
from vitslim.errors import BackendUnavailableError, InputError
from vitslim.results import TwoFourLayer
from vitslim.workload.session import Floats

WARMUP = 3
"""Runs on a side stream before a capture, so that libraries have chosen their kernels."""
COMPILED_SHAPES_MAX = 1000


class CudaModel:
    """The graph beside an ONNX file, on a GPU."""

    def __init__(self, path: Path, threads: int) -> None:  # noqa: ARG002 - a GPU has no thread count
        """Raises InputError when there is no graph beside the file, BackendUnavailableError without a GPU."""
        require_cuda()
        from vitslim.backends.measured.cuda.deploy import deploy
        from vitslim.graph.saved import GRAPH_FILE, load_graph

        if not path.with_name(GRAPH_FILE).is_file():
            raise InputError(
                f"{NAME} runs the graph beside '{path}', and '{GRAPH_FILE}' is missing there",
                "give the model.onnx in the folder of a run, or measure the file on onnxruntime:cpu",
            )
        graph = load_graph(path.parent)
        self._image = graph.source.image
        module, self.kernels = deploy(graph, "cuda")
        self._compiled = compiled(module, self.kernels)
        self._captured: dict[int, _Captured] = {}

    def __call__(self, images: Floats) -> Floats:
        """Logits float32 (n, classes) of images float32 (n, C, H, W). The same array again is not copied again."""
        batch = len(images)
        if batch not in self._captured:
            self._captured[batch] = self._capture(images)
        return self._captured[batch].run(images)

    def _capture(self, images: Floats) -> _Captured:
        """Raises BackendUnavailableError when a GPU library has no kernel for a layer at this batch size."""
        try:
            return _Captured(self._compiled, images)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            message = f"{NAME} cannot run this graph in batches of {len(images)}: {reason}"
            raise BackendUnavailableError(message, "measure other batches, or export without 2:4") from error

    def convert(self, images: Floats) -> Floats:
        """Images in the type of the input, which is float32."""
        return images

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape (batch, C, H, W) of the input."""
        return (batch, *self._image)


def compiled(module: Any, kernels: Mapping[str, str]) -> Any:
    """Return a module that is compiled for each batch size, so that elementwise operators are fused.

    For INT8 GEMMs Triton kernels are tried besides cuBLAS, whose INT8 GEMMs can be slower than its FP16 ones.
    """
    import torch

    autotune: dict[str, Any] = {"max_autotune_gemm": True} if "int8" in kernels.values() else {}
    return torch.compile(module, dynamic=False, options=autotune)


class _Captured:
    """A model captured for one batch size."""

    def __init__(self, module: Any, images: Floats) -> None:
        import torch

        self._images, self._input = images, torch.from_numpy(images).to("cuda", torch.float16)
        # Beyond its limit PyTorch silently stops compiling for new shapes.
        with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=COMPILED_SHAPES_MAX):
            self._graph, self._output = capture(lambda: module(self._input), WARMUP)

    def run(self, images: Floats) -> Floats:
        import torch

        from vitslim.graph.outputs import output_list

        if images is not self._images:
            self._images = images
            self._input.copy_(torch.from_numpy(images))
        self._graph.replay()
        torch.cuda.synchronize()
        found: list[Floats] = [one.float().cpu().numpy() for one in output_list(self._output)]
        return found[0]


def _two_four(path: Path) -> tuple[TwoFourLayer, ...]:
    from vitslim.backends.measured.cuda.deploy import two_four_layers
    from vitslim.graph.saved import load_graph

    return two_four_layers(load_graph(path.parent))


TORCH_CUDA = Runtime(
    name=NAME,
    title="PyTorch",
    package="torch",
    install_hint=INSTALL_HINT,
    open_model=CudaModel,
    runs_onnx=False,
    uses_threads=False,
    reopens=False,
    check_device=require_cuda,
    time_gemms=measure_cuda_gemms,
    two_four=_two_four,
    two_four_note="cuSPARSELt multiplies by every weight that was compressed for it",
)
