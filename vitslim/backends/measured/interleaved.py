"""Interleaved latency measurement of several files in one process, the same for every runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from vitslim.backends.measured.rounds import (
    BLOCKS,
    ROUNDS_MAX,
    Rounds,
    round_count,
    runs_per_round,
    shuffled,
    summarize,
)
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
    equally. The rounds are in BLOCKS blocks. Each opens the files anew and in another order, because the same file is
    up to one percent faster or slower each time that it is opened. `seconds` is the time for each file, batch size and
    thread count. Inputs are the same random images for every file.
    Raises UsageError for an unknown baseline, and the errors of `runtime.open_model`.
    """
    if baseline not in files:
        raise UsageError(f"the baseline '{baseline}' is not among the files", closest(baseline, files))
    results: dict[str, list[Measurement]] = {name: [] for name in files}
    for count in threads:
        for batch, times in _time(runtime, files, count, batches, seconds, progress).items():
            for name, blocks in times.items():
                reference = None if name == baseline else times[baseline]
                results[name].append(summarize(blocks, reference, runtime.name, batch, count))
    return {name: tuple(measurements) for name, measurements in results.items()}


def _time(
    runtime: Runtime, files: Mapping[str, Path], threads: int, batches: Sequence[int], seconds: float,
    progress: Progress,
) -> dict[int, dict[str, list[Rounds]]]:  # fmt: skip
    """Return the blocks of each file at each batch size."""
    times: dict[int, dict[str, list[Rounds]]] = {batch: {name: [] for name in files} for batch in batches}
    steps = [(block, index) for block in range(BLOCKS) for index in range(len(batches))]
    models: dict[str, Model] = {}
    for block, index in progress.track(steps, f"{runtime.name}: threads {threads}"):
        if index == 0 and (block == 0 or runtime.reopens):
            models.clear()
            models |= {name: runtime.open_model(files[name], threads) for name in shuffled(list(files), block)}
        for name, rounds in _time_block(models, batches[index], seconds / BLOCKS, block).items():
            times[batches[index]][name].append(rounds)
    return times


def _time_block(models: Mapping[str, Model], batch: int, seconds: float, block: int) -> dict[str, Rounds]:
    """Return seconds of every run of a block: file name to rounds to runs."""
    runs = {}
    for name, model in models.items():
        images = np.random.default_rng(0).standard_normal(model.input_shape(batch), dtype=np.float32)
        runs[name] = partial(_seconds, model, model.convert(images))
    warm = {name: _warm_up(run, seconds) for name, run in runs.items()}
    repeats = {name: runs_per_round(warm[name]) for name in runs}
    one_round = sum(warm[name] * repeats[name] for name in runs)
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    for index in range(round_count(seconds * len(runs), one_round)):
        for name in shuffled(list(runs), ROUNDS_MAX * block + index):
            times[name].append([runs[name]() for _ in range(repeats[name])])
    return dict(times)


def _warm_up(run: Callable[[], float], seconds: float) -> float:
    """Run a few times, or once when one run exceeds the budget; return the shortest time in seconds."""
    first = run()
    return first if first > seconds else min(run() for _ in range(WARMUP_RUNS - 1))


def _seconds(model: Model, images: Floats) -> float:
    start = perf_counter()
    model(images)
    return perf_counter() - start
