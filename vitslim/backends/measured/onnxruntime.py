"""ONNX Runtime on the CPU: latency of several files, and plain inference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vitslim.backends.measured.interleaved import Floats, bound_shape, measure_interleaved
from vitslim.errors import BackendUnavailableError, InputError
from vitslim.progress import Progress
from vitslim.results import Measurement
from vitslim.workload.onnx_file import check_onnx_file

BACKEND = "onnxruntime:cpu"
UNAVAILABLE_HINT = "install it: pip install onnxruntime"
EXTERNAL = "session.optimized_model_external_initializers_"
ERRORS_ONLY = 3
"""Log level of ONNX Runtime: errors, no warnings."""


class OnnxModel:
    """An ONNX file with one image input and one output, ready to run."""

    backend = BACKEND

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Open a session; `threads` 0 takes all cores.

        Raises InputError for a file that ONNX Runtime does not take, BackendUnavailableError without ONNX Runtime.
        """
        check_onnx_file(path)
        self._session: Any = open_session(path, f"'{path}'", threads)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{i.name}: {i.type}" for i in inputs)
            raise InputError(
                f"'{path}' needs one float32 input, but has {found or 'none'}", "export an image classifier"
            )
        self.path = path
        self._name: str = inputs[0].name
        self._shape: list[int | str | None] = list(inputs[0].shape)

    def __call__(self, images: Floats) -> Floats:
        """Logits float32 (n, classes) of images float32 (n, C, H, W)."""
        logits: Floats = self._session.run(None, {self._name: images})[0]
        return logits

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of an input of `batch` images. Raises InputError when the file does not take it."""
        return bound_shape(self.path, self._shape, batch)


def run_onnx(path: Path, batches: Iterable[Floats], threads: int = 0) -> Floats:
    """Logits float32 (n, classes) of all batches of images, through one session.

    Raises InputError for a bad file or no batches, BackendUnavailableError without ONNX Runtime.
    """
    model = OnnxModel(path, threads)
    logits = [model(np.asarray(images, np.float32)) for images in batches]
    if not logits:
        raise InputError(f"no images to run through '{path}'", "give at least one batch")
    return np.concatenate(logits)


def measure_latency(
    files: Mapping[str, Path], baseline: str, batches: Sequence[int], threads: Sequence[int], seconds: float,
    progress: Progress,
) -> dict[str, tuple[Measurement, ...]]:  # fmt: skip
    """Latency of each file at each thread count and batch size, in that order; see `measure_interleaved`.

    Raises InputError for a bad file, UsageError for an unknown baseline, BackendUnavailableError without ONNX Runtime.
    """
    return measure_interleaved(OnnxModel, files, baseline, batches, threads, seconds, progress)


def open_session(model: Path | bytes, shown: str, threads: int, optimized: Path | None = None) -> Any:
    """A session of a file or of a serialized model, which errors call `shown`; `threads` 0 takes all cores.

    optimized: where to write the graph that the session runs, its weights beside it.
    Raises InputError for a model that ONNX Runtime does not take, BackendUnavailableError without ONNX Runtime.
    """
    runtime = _runtime()
    errors = runtime.capi.onnxruntime_pybind11_state
    rejected = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoModel,
                errors.NoSuchFile, errors.NotImplemented, errors.RuntimeException)  # fmt: skip
    source = model if isinstance(model, bytes) else str(model)
    options = _options(runtime, threads)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        # One protobuf holds 2 GiB at most.
        options.add_session_config_entry(EXTERNAL + "file_name", f"{optimized.name}.data")
        options.add_session_config_entry(EXTERNAL + "min_size_in_bytes", "1024")
    try:
        return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except rejected as error:
        raise InputError(f"ONNX Runtime does not take {shown}: {_last_line(error)}",
                         "check the file with onnx.checker, or write it again") from error  # fmt: skip


def _runtime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(f"ONNX Runtime cannot be imported: {error}", UNAVAILABLE_HINT) from error
    return onnxruntime  # type: ignore[no-any-return]


def _options(runtime: ModuleType, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    # Workers of one file's session must not spin on the cores while another file is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].rpartition(" : ")[2][:200]
