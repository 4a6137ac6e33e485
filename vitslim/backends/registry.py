"""Names of backends, as recipes and the command line write them, resolved once to objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitslim.backends.gemm_list import Gemm
from vitslim.backends.measured import onnxruntime, openvino, torch_cuda
from vitslim.backends.measured.cuda_gemms import measure_cuda_gemms, require_cuda
from vitslim.backends.measured.gemms import measure_gemms
from vitslim.backends.measured.products import measure_products
from vitslim.backends.products import ProductTimes
from vitslim.backends.simulated.gpu_estimate import estimate as estimate_gpu
from vitslim.backends.simulated.gpu_spec import GPUS, GpuSpec, load_gpu
from vitslim.backends.simulated.products import product_times
from vitslim.backends.simulated.settings import read_settings
from vitslim.backends.simulated.spec import SystolicSpec, load_spec
from vitslim.backends.simulated.systolic_estimate import estimate
from vitslim.errors import BackendUnavailableError, UsageError, closest
from vitslim.latency_grid import Shape
from vitslim.progress import Progress
from vitslim.recipe.backend_names import BACKENDS, SPEC_SUFFIXES, backend_name
from vitslim.results import Estimate, Measurement
from vitslim.workload import read_workload

TARGETS = ("systolic", *GPUS)


@dataclass(frozen=True)
class Runtime:
    """What a measured backend is made of."""

    package: str
    title: str
    hint: str
    """How to install it."""
    measure: Callable[..., dict[str, tuple[Measurement, ...]]]
    measure_gemms: Callable[[Sequence[Gemm], int, Progress], list[float]] = measure_gemms
    require_device: Callable[[], None] = lambda: None


RUNTIMES = {
    onnxruntime.BACKEND: Runtime(
        "onnxruntime", "ONNX Runtime", onnxruntime.UNAVAILABLE_HINT, onnxruntime.measure_latency
    ),
    openvino.BACKEND: Runtime("openvino", "OpenVINO", openvino.UNAVAILABLE_HINT, openvino.measure_latency),
    torch_cuda.BACKEND: Runtime(
        "torch", "PyTorch", torch_cuda.UNAVAILABLE_HINT, torch_cuda.measure_latency, measure_cuda_gemms, require_cuda
    ),
}


@dataclass(frozen=True)
class Measured:
    """A backend that runs ONNX files, or the graphs beside them, and takes the time."""

    name: str

    @property
    def runs_onnx(self) -> bool:
        """Whether it runs the ONNX file itself, not the graph beside it."""
        return self.name != torch_cuda.BACKEND

    def require(self) -> None:
        """Raise BackendUnavailableError when the backend cannot run here."""
        runtime = RUNTIMES[self.name]
        if find_spec(runtime.package) is None:
            raise BackendUnavailableError(f"{runtime.title} is not installed", runtime.hint)
        runtime.require_device()

    def measure(
        self, files: Mapping[str, Path], baseline: str, batches: Sequence[int], threads: Sequence[int],
        seconds: float, progress: Progress,
    ) -> dict[str, tuple[Measurement, ...]]:  # fmt: skip
        """Latency of each file at each batch size and thread count, all files interleaved in one process."""
        return RUNTIMES[self.name].measure(files, baseline, batches, threads, seconds, progress)

    def product_times(
        self, shapes: Sequence[Shape], dense: Path, batch: int, threads: int, progress: Progress
    ) -> ProductTimes:
        """Latency of single matrix products and of the dense model they come from, interleaved.

        Raises UsageError on another runtime than ONNX Runtime.
        """
        if self.name != onnxruntime.BACKEND:
            raise UsageError(f"latency tables cannot be measured on {self.name}", f"use {onnxruntime.BACKEND}")
        return measure_products(shapes, dense, batch, threads, progress)

    def gemm_us(self, gemms: Sequence[Gemm], threads: int, progress: Progress) -> list[float]:
        """Median microseconds of each product. Raises UsageError for products that the backend cannot run."""
        return RUNTIMES[self.name].measure_gemms(gemms, threads, progress)


@dataclass(frozen=True)
class Simulated:
    """A backend that computes what an ONNX file would take."""

    name: str
    spec: SystolicSpec | GpuSpec

    def require(self) -> None:
        """Simulated backends need nothing but vitslim."""

    def estimate(self, path: Path, batch: int) -> Estimate:
        """Time of one ONNX file at one batch size."""
        workload = read_workload(path, batch)
        if isinstance(self.spec, GpuSpec):
            return estimate_gpu(workload, self.spec, self.name)
        return estimate(workload, self.spec, self.name)

    def product_times(self, shapes: Sequence[Shape], dense: Path, batch: int) -> ProductTimes:
        """Time of single matrix products and of the dense model they come from."""
        return product_times(shapes, read_workload(dense, batch), self.spec)


Backend = Measured | Simulated


def parse_backend(value: str | Mapping[str, Any]) -> Backend:
    """`onnxruntime:cpu`, `sim:a100`, `sim:FILE.yaml`, or a mapping such as `{sim: systolic, array: [32, 32]}`.

    Raises UsageError for unknown names and wrong settings, naming the closest; InputError for a bad settings file.
    """
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if not isinstance(value, str):
        raise UsageError(f"a backend is a name, not {value!r}", f"allowed: {', '.join(BACKENDS)}")
    kind, _, target = value.partition(":")
    if kind == "sim" and target:
        return _simulated(target, {}, value)
    if value not in RUNTIMES:
        raise UsageError(f"there is no backend '{value}'", closest(value, BACKENDS))
    return Measured(value)


def _from_mapping(value: Mapping[str, Any]) -> Simulated:
    target = value.get("sim")
    if not isinstance(target, str):
        raise UsageError(
            "a backend written as a mapping needs the key 'sim'", "for example {sim: systolic, dataflow: ws}"
        )
    changes = {str(key): setting for key, setting in value.items() if key != "sim"}
    return _simulated(target, changes, backend_name(value))


def _simulated(target: str, changes: Mapping[str, Any], name: str) -> Simulated:
    """A packaged target, or a file whose key `target` says on top of which one its settings are."""
    if not target.endswith(SPEC_SUFFIXES):
        return Simulated(name, _spec(target, changes, None))
    path = Path(target)
    return Simulated(name, _spec(read_settings(path).get("target", "systolic"), changes, path))


def _spec(target: object, changes: Mapping[str, Any], path: Path | None) -> SystolicSpec | GpuSpec:
    if target == "systolic":
        return load_spec(changes, path)
    if target not in GPUS:
        raise UsageError(f"there is no simulated backend '{target}'", closest(str(target), TARGETS))
    return load_gpu(str(target), changes, path)
