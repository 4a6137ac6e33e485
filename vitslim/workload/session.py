"""The one wrapper of ONNX Runtime: every session of vitslim is opened here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vitslim.errors import BackendUnavailableError, InputError
from vitslim.workload.onnx_file import check_onnx_file

Floats = npt.NDArray[np.float32]

INSTALL_HINT = "install it: pip install onnxruntime"
BROKEN_HINT = "check the file with onnx.checker, or write it again"
EXTERNAL_INITIALIZERS = "session.optimized_model_external_initializers_"
"""Prefix of the session options that store the weights of an optimized model in a second file."""
EXTERNAL_BYTES_MIN = 1024
"""Smaller tensors stay in the optimized model itself."""
FLOAT_TYPES = MappingProxyType(
    {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
)
"""Input types of ONNX Runtime that hold images, with those of NumPy."""
CPU_PROVIDER = "CPUExecutionProvider"
LOG_ERRORS = 3
"""Log level of ONNX Runtime: errors, no warnings."""


class OnnxModel:
    """An image classifier in an ONNX file, ready to run in ONNX Runtime."""

    def __init__(
        self,
        path: Path,
        threads: int = 0,
        fuse: bool = True,
        provider: str = CPU_PROVIDER,
        profile: Path | None = None,
    ) -> None:
        """Open a session; `threads` 0 uses all cores, `fuse`, `provider` and `profile` as in `open_session`.

        Raises InputError for a file that ONNX Runtime rejects or that has other inputs than one float tensor,
        BackendUnavailableError without ONNX Runtime.
        """
        check_onnx_file(path)
        self._session = open_session(path, f"'{path}'", threads=threads, fuse=fuse, provider=provider, profile=profile)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in FLOAT_TYPES:
            found = ", ".join(f"{i.name}: {i.type}" for i in inputs)
            raise InputError(f"'{path}' needs one float input, but has {found or 'none'}", "export an image classifier")
        self.path = path
        self._type = FLOAT_TYPES[inputs[0].type]
        self._name: str = inputs[0].name
        self._shape: list[int | str | None] = list(inputs[0].shape)

    def __call__(self, images: Floats) -> Floats:
        """First output, float32 (n, ...), of images float32 (n, C, H, W): the logits of a classifier."""
        return self.run(images)[0]

    def run(self, images: Floats) -> tuple[Floats, ...]:
        """All outputs, float32 (n, ...) each, of images float32 (n, C, H, W).

        A file with a fixed batch size runs batch by batch; the last image fills up the last batch.
        """
        size = self._shape[0] if self._shape else None
        if not isinstance(size, int) or size == len(images):
            return self._run(images)
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        missing = size - len(parts[-1])
        parts[-1] = np.concatenate([parts[-1], np.repeat(parts[-1][-1:], missing, axis=0)])
        outputs = zip(*(self._run(part) for part in parts), strict=True)
        return tuple(np.concatenate(found)[: len(images)] for found in outputs)

    def _run(self, images: Floats) -> tuple[Floats, ...]:
        outputs = self._session.run(None, {self._name: self.convert(images)})
        return tuple(one.astype(np.float32, copy=False) for one in outputs)

    def end_profile(self) -> Path:
        """Stop the profiler and return its file, which is JSON."""
        return Path(self._session.end_profiling())

    def convert(self, images: Floats) -> npt.NDArray[Any]:
        """Images in the type of the input: float32, float16 or float64. Images of this type are not copied."""
        return images.astype(self._type, copy=False)

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape (batch, C, H, W) of the input. Raises InputError when the file has another fixed batch size."""
        return bind_batch(self.path, self._shape, batch)


def available_providers() -> tuple[str, ...]:
    """Return the execution providers of the installed ONNX Runtime. Raises BackendUnavailableError without it."""
    return tuple(_import_onnxruntime().get_available_providers())


def open_session(
    model: Path | bytes,
    name: str,
    *,
    threads: int = 0,
    fuse: bool = True,
    optimized: Path | None = None,
    provider: str = CPU_PROVIDER,
    profile: Path | None = None,
) -> Any:
    """Return an `onnxruntime.InferenceSession` of a file or of a serialized model, called `name` in errors.

    threads: threads within an operator; 0 uses all cores.
    fuse: all graph optimizations. False leaves only the basic ones, so that matmuls between QuantizeLinear and
        DequantizeLinear run in float: processors without VNNI saturate the 16-bit sums of integer kernels.
    optimized: path at which ONNX Runtime writes the optimized graph, its weights in a second file beside it.
    provider: execution provider that runs the model. Operators that it lacks run on the CPU.
    profile: beginning of the path at which the profiler writes the time of each operator; None does not profile.
    Raises InputError for a model that ONNX Runtime rejects, BackendUnavailableError without ONNX Runtime, or if the
    provider cannot start.
    """
    runtime = _import_onnxruntime()
    errors = runtime.capi.onnxruntime_pybind11_state
    rejected = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoModel,
                errors.NoSuchFile, errors.NotImplemented, errors.RuntimeException)  # fmt: skip
    source = model if isinstance(model, bytes) else str(model)
    options = _session_options(runtime, threads, fuse)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        # One protobuf holds at most 2 GiB.
        options.add_session_config_entry(f"{EXTERNAL_INITIALIZERS}file_name", f"{optimized.name}.data")
        options.add_session_config_entry(f"{EXTERNAL_INITIALIZERS}min_size_in_bytes", str(EXTERNAL_BYTES_MIN))
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        session = runtime.InferenceSession(source, options, providers=list(dict.fromkeys((provider, CPU_PROVIDER))))
    except rejected as error:
        raise InputError(f"ONNX Runtime rejects {name}: {_last_line(error)}", BROKEN_HINT) from error
    if provider not in session.get_providers():  # ONNX Runtime falls back to the CPU with a warning
        message = (
            f"ONNX Runtime could not start {provider}: it is not installed, or its libraries or device are missing"
        )
        raise BackendUnavailableError(message, "`vitslim doctor` lists the backends that work here")
    return session


def bind_batch(path: Path, declared: Sequence[int | str | None], batch: int) -> tuple[int, ...]:
    """Return a declared input shape with its first dimension bound; a dimension that is not an integer is dynamic.

    Raises InputError for another fixed batch size and for a dynamic image size.
    """
    first, *rest = declared or [None]
    if isinstance(first, int) and first != batch:
        raise InputError(f"'{path}' has a fixed batch size of {first}, not {batch}",
                         f"measure at batch {first}, or export with a dynamic batch")  # fmt: skip
    if not all(isinstance(size, int) for size in rest):
        raise InputError(f"'{path}' has a dynamic image size", "export the model with a fixed image size")
    return (batch, *(int(size) for size in rest if size is not None))


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(f"ONNX Runtime cannot be imported: {error}", INSTALL_HINT) from error
    return onnxruntime  # type: ignore[no-any-return]


def _session_options(runtime: ModuleType, threads: int, fuse: bool) -> Any:
    options, levels = runtime.SessionOptions(), runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fuse else levels.ORT_ENABLE_BASIC
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS
    # Threads of one session must not spin on the cores while another session is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].rpartition(" : ")[2][:200]
