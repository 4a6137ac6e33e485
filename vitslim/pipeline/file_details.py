"""Details of one file on the backends: peak memory, times of operators, and kernels of 2:4 weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from vitslim.backends.measured.operator_times import RUNS
from vitslim.backends.measured.tensorrt_log import read_tensorrt_log
from vitslim.backends.peak_memory import peak_memory_bytes
from vitslim.backends.registry import Backend, Measured, Simulated, parse_backend
from vitslim.progress import Progress
from vitslim.recipe.schema import ReportConfig
from vitslim.results import Measurement, OperatorProfile, TwoFourUse
from vitslim.workload import load_onnx
from vitslim.workload.contents.read_contents import name_nodes, read_contents


def with_peak_memory(
    backend: Measured, path: Path, rows: Iterable[Measurement], progress: Progress
) -> tuple[Measurement, ...]:
    """Return the measurements of a file with their peak memory; unchanged for a backend on another device."""
    if not backend.runtime.in_host_memory:
        return tuple(rows)
    progress.say(f"{backend.name}: peak memory of {path}")
    return tuple(
        row.model_copy(update={"peak_memory_mb": peak_memory_bytes(backend.name, path, row.batch, row.threads) / 1e6})
        for row in rows
    )


def operator_profiles(path: Path, config: ReportConfig, progress: Progress) -> tuple[OperatorProfile, ...]:
    """Return the operators of a file on each backend with a profiler, at the first batch size and thread count."""
    batch, threads = config.batches[0], config.threads[0]
    found = []
    for backend in _measured(config):
        if backend.runtime.profile is None:
            continue
        progress.say(f"{backend.name}: profiling {path}")
        operators = backend.runtime.profile(path, batch, threads)
        found.append(
            OperatorProfile(backend=backend.name, batch=batch, threads=threads, runs=RUNS, operators=operators)
        )
    return tuple(found)


def two_four_uses(path: Path, config: ReportConfig, tensorrt_log: Path | None = None) -> tuple[TwoFourUse, ...]:
    """Return the kernels of the layers with 2:4 weights on each backend; empty for a file without any.

    tensorrt_log: TensorRT's log of a build of the file. Raises InputError if it cannot be read.
    """
    nodes = _two_four_nodes(path)
    if not nodes:
        return ()
    logged = [] if tensorrt_log is None else [read_tensorrt_log(tensorrt_log, nodes)]
    return (*(_use(parse_backend(value), path) for value in config.backends), *logged)


def _two_four_nodes(path: Path) -> dict[str, str]:
    """Return the layers of a file whose stored weights are 2:4: name of the node to name of the layer."""
    model = load_onnx(path)
    name_nodes(model)
    return {layer.node: layer.name for layer in read_contents(model).layers if layer.patterns}


def _use(backend: Backend, path: Path) -> TwoFourUse:
    if isinstance(backend, Simulated):
        return TwoFourUse(backend=backend.name, note=backend.simulator.two_four_note)
    tell = backend.runtime.two_four
    layers = () if tell is None else tell(path)
    return TwoFourUse(backend=backend.name, layers=layers, note=backend.runtime.two_four_note)


def _measured(config: ReportConfig) -> Iterator[Measured]:
    for value in config.backends:
        backend = parse_backend(value)
        if isinstance(backend, Measured):
            yield backend
