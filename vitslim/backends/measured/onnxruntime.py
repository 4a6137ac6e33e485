"""ONNX Runtime on the CPU: latency of several files, interleaved in one process, and plain inference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vitslim.backends.measured.rounds import rotated, round_count, runs_per_round, summarise
from vitslim.errors import BackendUnavailableError, InputError, UsageError, closest
from vitslim.progress import Progress
from vitslim.results import Measurement
from vitslim.workload.file import check_onnx_file

BACKEND = "onnxruntime:cpu"
WARMUP_RUNS = 3
UNAVAILABLE_HINT = "install it: pip install onnxruntime"
ERRORS_ONLY = 3
"""Log level of ONNX Runtime: errors, no warnings."""

Floats = npt.NDArray[np.float32]


class OnnxModel:
    """An ONNX file with one image input and one output, ready to run."""

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
        first, *rest = self._shape or [None]
        if isinstance(first, int) and first != batch:
            raise InputError(f"'{self.path}' has a fixed batch size of {first}, not {batch}",
                             f"measure at batch {first}, or export with a dynamic batch")  # fmt: skip
        if not all(isinstance(size, int) for size in rest):
            raise InputError(f"'{self.path}' has a dynamic image size", "export the model with a fixed image size")
        return (batch, *(int(size) for size in rest if size is not None))


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
    """Latency of each file at each thread count and batch size, in that order.

    All files run in this process in turn, a few times a round, so that a slow spell of the machine hits all of them
    alike; speed-ups are medians over the rounds of baseline time over own time. `seconds` is the time for each file,
    batch size and thread count. Inputs are the same random images for every file, float32.
    Raises InputError for a bad file, UsageError for an unknown baseline, BackendUnavailableError without ONNX Runtime.
    """
    if baseline not in files:
        raise UsageError(f"the baseline '{baseline}' is not among the files", closest(baseline, files))
    results: dict[str, list[Measurement]] = {name: [] for name in files}
    for count in threads:
        models = {name: OnnxModel(path, count) for name, path in files.items()}
        for batch in batches:
            rounds = _time(models, batch, seconds, progress, f"{BACKEND}: batch {batch}, threads {count}")
            for name, times in rounds.items():
                reference = None if name == baseline else rounds[baseline]
                results[name].append(summarise(times, reference, BACKEND, batch, count))
    return {name: tuple(measurements) for name, measurements in results.items()}


def _time(
    models: Mapping[str, OnnxModel], batch: int, seconds: float, progress: Progress, label: str
) -> dict[str, list[list[float]]]:
    """Seconds of every run: file name to rounds to runs."""
    generator = np.random.default_rng(0)
    runs = {}
    for name, model in models.items():
        images = generator.standard_normal(model.input_shape(batch), dtype=np.float32)
        runs[name] = partial(_timed, model, images)
    warm = {name: _warm_up(run, seconds) for name, run in runs.items()}
    repeats = {name: runs_per_round(warm[name]) for name in runs}
    one_round = sum(warm[name] * repeats[name] for name in runs)
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    for index in progress.track(range(round_count(seconds * len(runs), one_round)), label):
        for name in rotated(list(runs), index):
            times[name].append([runs[name]() for _ in range(repeats[name])])
    return times


def _warm_up(run: Callable[[], float], seconds: float) -> float:
    """Run a few times, or once when that takes all the time there is; returns the shortest time."""
    first = run()
    return first if first > seconds else min(run() for _ in range(WARMUP_RUNS - 1))


def _timed(model: OnnxModel, images: Floats) -> float:
    start = perf_counter()
    model(images)
    return perf_counter() - start


def open_session(model: Path | bytes, shown: str, threads: int) -> Any:
    """A session of a file or of a serialised model, which errors call `shown`; `threads` 0 takes all cores.

    Raises InputError for a model that ONNX Runtime does not take, BackendUnavailableError without ONNX Runtime.
    """
    runtime = _runtime()
    errors = runtime.capi.onnxruntime_pybind11_state
    rejected = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoModel,
                errors.NoSuchFile, errors.NotImplemented, errors.RuntimeException)  # fmt: skip
    source = model if isinstance(model, bytes) else str(model)
    try:
        return runtime.InferenceSession(source, _options(runtime, threads), providers=["CPUExecutionProvider"])
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
