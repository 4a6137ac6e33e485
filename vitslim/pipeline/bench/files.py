"""`bench`: latency of existing ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitslim.backends.environment import environment
from vitslim.backends.registry import Simulated, parse_backend
from vitslim.errors import UsageError
from vitslim.pipeline.file_details import operator_profiles, two_four_uses
from vitslim.pipeline.latency import measure_files
from vitslim.progress import Progress, Silent
from vitslim.recipe.schema import ReportConfig
from vitslim.results import Environment, Estimate, Measurement, OperatorProfile, TwoFourUse, Value
from vitslim.workload import load_onnx, read_workload


class BenchRow(Value):
    """Latency of one ONNX file."""

    file: str
    measurements: tuple[Measurement, ...]
    estimates: tuple[Estimate, ...]
    profiles: tuple[OperatorProfile, ...] = ()
    two_four: tuple[TwoFourUse, ...] = ()


class BenchResult(Value):
    """Latency of several ONNX files, from one run."""

    environment: Environment
    rows: tuple[BenchRow, ...]


def bench(
    files: Sequence[Path], config: ReportConfig, progress: Progress | None = None, tensorrt_log: Path | None = None
) -> BenchResult:
    """Return the latency of each file on each backend of the config; the first file is the baseline.

    tensorrt_log: TensorRT's log of a build of the only file, which tells the kernels of its layers with 2:4 weights.
    Raises InputError, before anything is measured, for a file that is missing or not ONNX, and for a file whose
    operators or batch size a simulated backend cannot read. Measured backends take any file that their runtime runs.
    """
    if tensorrt_log is not None and len(files) > 1:
        raise UsageError(f"a log of TensorRT describes one file, got {len(files)}", "name one file")
    is_simulated = any(isinstance(parse_backend(name), Simulated) for name in config.backends)
    for path in files:
        load_onnx(path)
        for batch in config.batches if is_simulated else ():
            read_workload(path, batch)
    named = {str(path): path for path in files}
    progress = progress or Silent()
    results = measure_files(named, str(files[0]), config, progress)
    rows = tuple(
        BenchRow(
            file=name,
            measurements=results[name][0],
            estimates=results[name][1],
            profiles=operator_profiles(path, config, progress) if config.profile else (),
            two_four=two_four_uses(path, config, tensorrt_log),
        )
        for name, path in named.items()
    )
    return BenchResult(environment=environment(), rows=rows)
