"""Interleaved latency measurement of several files in one process, the same for every runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from vitslim.backends.measured.rounds import round_count, runs_per_round, shuffled, summarize
from vitslim.backends.measured.runtime import Model, Runtime
from vitslim.errors import UsageError, closest
from vitslim.progress import Progress
from vitslim.results import Measurement
from vitslim.workload.session import Floats

WARMUP_RUNS = 3


def measure_interleaved(
    runtime: Runtime, files: Mapping[str, Path], baseline: str, batches: Sequence[int], threads: Sequence[int],
    seconds: float, progress: Progress,
) -> dict[str, tuple[Measurement, ...]]:  # fmt: skip
    """Return the latency of each file at each thread count and batch size, in that order.

    All files run in this process in turn, a few times a round, so that a slow phase of the machine affects all of them
    equally; speedups are medians over the rounds of baseline time over own time. `seconds` is the time for each file,
    batch size and thread count. Inputs are the same random images for every file.
    Raises UsageError for an unknown baseline, and the errors of `runtime.open_model`.
    """
    if baseline not in files:
        raise UsageError(f"the baseline '{baseline}' is not among the files", closest(baseline, files))
    results: dict[str, list[Measurement]] = {name: [] for name in files}
    for count in threads:
        models = {name: runtime.open_model(path, count) for name, path in files.items()}
        for batch in batches:
            rounds = _time(models, batch, seconds, progress, f"{runtime.name}: batch {batch}, threads {count}")
            for name, times in rounds.items():
                reference = None if name == baseline else rounds[baseline]
                results[name].append(summarize(times, reference, runtime.name, batch, count))
    return {name: tuple(measurements) for name, measurements in results.items()}


def _time(
    models: Mapping[str, Model], batch: int, seconds: float, progress: Progress, label: str
) -> dict[str, list[list[float]]]:
    """Return seconds of every run: file name to rounds to runs."""
    generator = np.random.default_rng(0)
    runs = {}
    for name, model in models.items():
        images = generator.standard_normal(model.input_shape(batch), dtype=np.float32)
        runs[name] = partial(_seconds, model, model.convert(images))
    warm = {name: _warm_up(run, seconds) for name, run in runs.items()}
    repeats = {name: runs_per_round(warm[name]) for name in runs}
    one_round = sum(warm[name] * repeats[name] for name in runs)
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    for index in progress.track(range(round_count(seconds * len(runs), one_round)), label):
        for name in shuffled(list(runs), index):
            times[name].append([runs[name]() for _ in range(repeats[name])])
    return times


def _warm_up(run: Callable[[], float], seconds: float) -> float:
    """Run a few times, or once when one run exceeds the budget; return the shortest time in seconds."""
    first = run()
    return first if first > seconds else min(run() for _ in range(WARMUP_RUNS - 1))


def _seconds(model: Model, images: Floats) -> float:
    start = perf_counter()
    model(images)
    return perf_counter() - start
