"""Latency of each stage's ONNX file on each backend of the recipe: measured, interleaved, or simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from vitslim.backends.registry import Measured, Simulated, parse_backend
from vitslim.files import file_digest
from vitslim.pipeline.file_details import with_peak_memory
from vitslim.progress import Progress
from vitslim.recipe.schema import ReportConfig
from vitslim.results import Estimate, Measurement
from vitslim.results.accelerator_counts import Counts


def measure_files(
    files: dict[str, Path],
    baseline: str,
    config: ReportConfig,
    progress: Progress,
    counts: Mapping[tuple[str, str], Counts] = MappingProxyType({}),
) -> dict[str, tuple[tuple[Measurement, ...], tuple[Estimate, ...]]]:
    """Return measurements and estimates of each file; speedups are over `baseline` on the same backend and batch.

    Equal files are measured once. counts: name of a file and of a backend that changes results to the work of each
    image; without it the backend states its work.
    """
    same = _equal_files(files, baseline)
    measured: dict[str, list[Measurement]] = {name: [] for name in files}
    estimated: dict[str, list[Estimate]] = {name: [] for name in files}
    for backend in map(parse_backend, config.backends):
        match backend:
            case Measured():
                distinct = {name: path for name, path in files.items() if same[name] == name}
                results = backend.measure(distinct, baseline, config.batches, config.threads, config.seconds, progress)
                if config.memory:
                    results = {
                        name: with_peak_memory(backend, files[name], rows, progress) for name, rows in results.items()
                    }
                for name, rows in measured.items():
                    rows.extend(results[same[name]])
            case Simulated():
                for batch in config.batches:
                    for name, row in _estimate(backend, files, baseline, batch, counts).items():
                        estimated[name].append(row)
    return {name: (tuple(measured[name]), tuple(estimated[name])) for name in files}


def _equal_files(files: Mapping[str, Path], baseline: str) -> dict[str, str]:
    """Map the name of each file to that of the first one with the same content; the baseline stands for itself."""
    first: dict[str, str] = {}
    return {
        name: name if name == baseline else first.setdefault(file_digest(path), name) for name, path in files.items()
    }


def _estimate(
    backend: Simulated,
    files: dict[str, Path],
    baseline: str,
    batch: int,
    counts: Mapping[tuple[str, str], Counts],
) -> dict[str, Estimate]:
    rows = {name: backend.estimate(path, batch, counts.get((name, backend.name))) for name, path in files.items()}
    dense = rows[baseline].latency_ms
    return {
        name: row if name == baseline else row.model_copy(update={"speedup": dense / row.latency_ms})
        for name, row in rows.items()
    }


def latency_of_files(
    config: ReportConfig, progress: Progress
) -> Callable[[Mapping[str, Path]], dict[str, Measurement]] | None:
    """Return a function that measures ONNX files on the first backend of a recipe that runs them; None without one.

    It measures at the first batch size and thread count of the recipe.
    """
    backends = [found for found in map(parse_backend, config.backends) if isinstance(found, Measured)]
    backend = next((found for found in backends if found.runtime.runs_onnx), None)
    if backend is None:
        return None

    def measure(files: Mapping[str, Path]) -> dict[str, Measurement]:
        results = backend.measure(
            files, next(iter(files)), config.batches[:1], config.threads[:1], config.seconds, progress
        )
        return {name: found[0] for name, found in results.items()}

    return measure
