"""`vitslim bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitslim.cli.arguments import FormatOption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from vitslim.results import BenchResult


def bench(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="ONNX files; speed-ups are against the first.")
    ],
    backend: Annotated[
        list[str] | None, typer.Option("--backend", help="onnxruntime:cpu or sim:systolic; may be repeated.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Batch size; may be repeated.")] = None,
    threads: Annotated[list[int] | None, typer.Option("--threads", min=1, help="CPU threads; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each file, batch and thread count.")] = 2.0,
    output: FormatOption = "table",
) -> None:
    """Measure the latency of ONNX files. All files run interleaved in one process; `sim:` backends simulate."""
    from vitslim.cli.console import ConsoleProgress, stdout
    from vitslim.pipeline.bench import bench as bench_files
    from vitslim.recipe.schema import ReportConfig

    config = ReportConfig(
        backends=tuple(backend or ["onnxruntime:cpu"]),
        batches=tuple(batch or [1]),
        threads=tuple(threads or [1]),
        seconds=seconds,
    )
    results = bench_files(files, config, ConsoleProgress())
    if output == "json":
        typer.echo(results.model_dump_json(indent=2))
        return
    for table in _tables(results):
        stdout().print(table)


def _tables(result: BenchResult) -> Iterator[Table]:
    """Measured and simulated latencies never share a table."""
    from vitslim.cli.console import plain_table

    measured = plain_table(
        f"measured on {result.environment.device}",
        ("file", "backend"),
        ("batch", "threads", "median", "spread", "runs", "speed-up"),
    )
    simulated = plain_table("simulated", ("file", "backend"), ("batch", "cycles", "latency", "speed-up"))
    for row in result.rows:
        for m in row.measurements:
            times = (f"{m.median_ms:.3f} ms", f"{m.spread_ms:.3f} ms")
            measured.add_row(row.file, m.backend, str(m.batch), str(m.threads), *times, str(m.n), _speedup(m.speedup))
        for e in row.estimates:
            simulated.add_row(
                row.file, e.backend, str(e.batch), f"{e.cycles:,}", f"{e.latency_ms:.3f} ms", _speedup(e.speedup)
            )
    yield from (table for table in (measured, simulated) if table.row_count)


def _speedup(value: float | None) -> str:
    return f"{value:.2f}x" if value else "baseline"
