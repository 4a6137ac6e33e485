"""`bench`: latency of existing ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitslim.backends.environment import environment
from vitslim.backends.registry import Simulated, parse_backend
from vitslim.pipeline.latency import measure_files
from vitslim.progress import Progress, Silent
from vitslim.recipe.schema import ReportConfig
from vitslim.results import Environment, Estimate, Measurement, Value
from vitslim.workload import load_onnx, read_workload


class BenchRow(Value):
    """Latency of one ONNX file."""

    file: str
    measurements: tuple[Measurement, ...]
    estimates: tuple[Estimate, ...]


class BenchResult(Value):
    """Latency of several ONNX files, from one run."""

    environment: Environment
    rows: tuple[BenchRow, ...]


def bench(files: Sequence[Path], config: ReportConfig, progress: Progress | None = None) -> BenchResult:
    """Return the latency of each file on each backend of the config; the first file is the baseline.

    Raises InputError, before anything is measured, for a file that is missing or not ONNX, and for a file whose
    operators or batch size a simulated backend cannot read. Measured backends take any file that their runtime runs.
    """
    is_simulated = any(isinstance(parse_backend(name), Simulated) for name in config.backends)
    for path in files:
        load_onnx(path)
        for batch in config.batches if is_simulated else ():
            read_workload(path, batch)
    named = {str(path): path for path in files}
    results = measure_files(named, str(files[0]), config, progress or Silent())
    rows = tuple(BenchRow(file=name, measurements=m, estimates=e) for name, (m, e) in results.items())
    return BenchResult(environment=environment(), rows=rows)
