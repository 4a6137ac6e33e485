"""Interface between measured backends and the runtimes that execute models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.matmul_times import MatmulTimes
from vitslim.errors import BackendUnavailableError
from vitslim.latency_grid import Precision, Shape
from vitslim.progress import Progress
from vitslim.results import OperatorTime, TwoFourLayer
from vitslim.workload.session import Floats


class Model(Protocol):
    """A model that is open in a runtime."""

    def __call__(self, images: Floats) -> Floats:
        """Logits float32 (n, classes) of images float32 (n, C, H, W)."""
        ...

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape (batch, C, H, W) of the input. Raises InputError for a batch size that the file does not allow."""
        ...

    def convert(self, images: Floats) -> Any:
        """Images in the type of the input, so that a timed call converts nothing."""
        ...


@dataclass(frozen=True)
class Runtime:
    """A runtime: its package, and the functions that open and time models in it."""

    name: str
    """Name of the backend, such as `onnxruntime:cpu`."""
    title: str
    package: str
    """Python package that must be installed."""
    install_hint: str
    open_model: Callable[[Path, int], Model]
    """Open the model of an ONNX file for a number of threads."""
    runs_onnx: bool = True
    """Whether it runs the ONNX file itself. False: it runs the graph that is saved beside the file."""
    uses_threads: bool = True
    """Whether the number of CPU threads changes the latency."""
    reopens: bool = True
    """Whether a measurement opens the model several times. False where that takes long, because it is compiled."""
    check_device: Callable[[], None] | None = None
    """Raise BackendUnavailableError when the device of the runtime is missing."""
    time_gemms: Callable[[Sequence[Gemm], int, Progress], list[float]] | None = None
    """Microseconds of each GEMM for a number of threads; None where single GEMMs cannot be timed."""
    time_matmuls: Callable[[Sequence[Shape], Path, int, int, Precision, Progress], MatmulTimes] | None = None
    """Latencies of matmuls and of the dense model in an ONNX file, for a batch size, a number of threads and the
    precision of matmuls by a weight; None where latency tables cannot be measured."""

    in_host_memory: bool = False
    """Whether the model is in the memory of its process, so that its peak memory can be measured."""
    profile: Callable[[Path, int, int], tuple[OperatorTime, ...]] | None = None
    """Times of the operators of a file for a batch size and a number of threads; None without a profiler."""
    two_four: Callable[[Path], tuple[TwoFourLayer, ...]] | None = None
    """Kernels of the layers with 2:4 weights; None for a runtime that does not tell."""
    two_four_note: str = ""
    """Source of `two_four`, or the reason for its absence."""

    def require(self) -> None:
        """Raise BackendUnavailableError when the package or the device is missing."""
        if find_spec(self.package) is None:
            raise BackendUnavailableError(f"{self.title} is not installed", self.install_hint)
        if self.check_device is not None:
            self.check_device()
