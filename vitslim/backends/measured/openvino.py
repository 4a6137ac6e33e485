"""OpenVINO on the CPU: latency of several files, and plain inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vitslim.backends.measured.interleaved import Floats, bound_shape, measure_interleaved
from vitslim.errors import BackendUnavailableError, InputError
from vitslim.progress import Progress
from vitslim.results import Measurement
from vitslim.workload.onnx_file import check_onnx_file

BACKEND = "openvino:cpu"
UNAVAILABLE_HINT = "install it: pip install openvino"
BROKEN_HINT = "check the file with onnx.checker, or write it again"


class OpenVinoModel:
    """An ONNX file with one image input and one output, ready to run."""

    backend = BACKEND

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Read a file; `threads` 0 takes all cores. It is compiled when a batch size first runs, for that batch size.

        Raises InputError for a file that OpenVINO does not take, BackendUnavailableError without OpenVINO.
        """
        check_onnx_file(path)
        self._runtime = _runtime()
        self._core: Any = self._runtime.Core()
        try:
            self._model: Any = self._core.read_model(str(path))
        except RuntimeError as error:
            raise InputError(f"OpenVINO does not take '{path}': {_reason(error)}", BROKEN_HINT) from error
        inputs = self._model.inputs
        if len(inputs) != 1 or inputs[0].element_type != self._runtime.Type.f32:
            found = ", ".join(i.element_type.get_type_name() for i in inputs)
            raise InputError(f"'{path}' needs one float32 input, but has {found or 'none'}",
                             "export an image classifier")  # fmt: skip
        self.path = path
        self._shape = _declared(inputs[0].partial_shape)
        self._settings = _settings(threads)
        self._compiled: dict[int, Any] = {}

    def __call__(self, images: Floats) -> Floats:
        """Logits float32 (n, classes) of images float32 (n, C, H, W)."""
        if len(images) not in self._compiled:
            self._compiled[len(images)] = self._request(images.shape)
        request = self._compiled[len(images)]
        request.infer({0: images}, share_inputs=True)
        logits: Floats = request.get_output_tensor(0).data.copy()
        return logits

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of an input of `batch` images. Raises InputError when the file does not take it."""
        return bound_shape(self.path, self._shape, batch)

    def _request(self, shape: tuple[int, ...]) -> Any:
        try:
            model = self._model.clone()
            model.reshape(list(shape))
            return self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot run '{self.path}': {_reason(error)}", BROKEN_HINT) from error


def measure_latency(
    files: Mapping[str, Path], baseline: str, batches: Sequence[int], threads: Sequence[int], seconds: float,
    progress: Progress,
) -> dict[str, tuple[Measurement, ...]]:  # fmt: skip
    """Latency of each file at each thread count and batch size, in that order; see `measure_interleaved`.

    Raises InputError for a bad file, UsageError for an unknown baseline, BackendUnavailableError without OpenVINO.
    """
    return measure_interleaved(OpenVinoModel, files, baseline, batches, threads, seconds, progress)


def _settings(threads: int) -> dict[str, Any]:
    """One stream that answers as fast as it can, and float numbers that stay float32.

    By itself OpenVINO computes them in bfloat16 where the processor can: another model than the file holds.
    """
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return settings | ({"INFERENCE_NUM_THREADS": threads} if threads else {})


def _declared(shape: Any) -> list[int | str | None]:
    """Sizes of a partial shape; a dynamic one is `?`."""
    return [int(dim.get_length()) if dim.is_static else "?" for dim in shape]


def _runtime() -> ModuleType:
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailableError(f"OpenVINO cannot be imported: {error}", UNAVAILABLE_HINT) from error
    return openvino  # type: ignore[no-any-return]


def _reason(error: Exception) -> str:
    """The last sentence of an error, which says what was wrong; those before it are places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]
