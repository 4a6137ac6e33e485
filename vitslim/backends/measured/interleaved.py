"""Latency of several files on one runtime, interleaved in one process: the same for every runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vitslim.backends.measured.rounds import rotated, round_count, runs_per_round, summarize
from vitslim.errors import InputError, UsageError, closest
from vitslim.progress import Progress
from vitslim.results import Measurement

WARMUP_RUNS = 3

Floats = npt.NDArray[np.float32]


class Model(Protocol):
    """An ONNX file, open in a runtime."""

    backend: str
    """Name of the runtime, such as `onnxruntime:cpu`."""

    def __init__(self, path: Path, threads: int) -> None:
        """Open a file for so many threads."""

    def __call__(self, images: Floats) -> Floats:
        """Logits float32 (n, classes) of images float32 (n, C, H, W)."""
        ...

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of an input of `batch` images. Raises InputError when the file does not take it."""
        ...


def measure_interleaved(
    runtime: type[Model], files: Mapping[str, Path], baseline: str, batches: Sequence[int], threads: Sequence[int],
    seconds: float, progress: Progress,
) -> dict[str, tuple[Measurement, ...]]:  # fmt: skip
    """Latency of each file at each thread count and batch size, in that order.

    All files run in this process in turn, a few times a round, so that a slow spell of the machine hits all of them
    alike; speed-ups are medians over the rounds of baseline time over own time. `seconds` is the time for each file,
    batch size and thread count. Inputs are the same random images for every file, float32.
    Raises UsageError for an unknown baseline, and what opening a file raises.
    """
    if baseline not in files:
        raise UsageError(f"the baseline '{baseline}' is not among the files", closest(baseline, files))
    results: dict[str, list[Measurement]] = {name: [] for name in files}
    for count in threads:
        models = {name: runtime(path, count) for name, path in files.items()}
        for batch in batches:
            rounds = _time(models, batch, seconds, progress, f"{runtime.backend}: batch {batch}, threads {count}")
            for name, times in rounds.items():
                reference = None if name == baseline else rounds[baseline]
                results[name].append(summarize(times, reference, runtime.backend, batch, count))
    return {name: tuple(measurements) for name, measurements in results.items()}


def bound_shape(path: Path, declared: Sequence[int | str | None], batch: int) -> tuple[int, ...]:
    """A declared input shape with its first dimension bound; whatever is no number is dynamic.

    Raises InputError for another fixed batch size and for a dynamic image size.
    """
    first, *rest = declared or [None]
    if isinstance(first, int) and first != batch:
        raise InputError(f"'{path}' has a fixed batch size of {first}, not {batch}",
                         f"measure at batch {first}, or export with a dynamic batch")  # fmt: skip
    if not all(isinstance(size, int) for size in rest):
        raise InputError(f"'{path}' has a dynamic image size", "export the model with a fixed image size")
    return (batch, *(int(size) for size in rest if size is not None))


def _time(
    models: Mapping[str, Model], batch: int, seconds: float, progress: Progress, label: str
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


def _timed(model: Model, images: Floats) -> float:
    start = perf_counter()
    model(images)
    return perf_counter() - start
