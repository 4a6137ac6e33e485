"""`vitslim bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vitslim.cli.arguments import FormatOption
from vitslim.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from vitslim.pipeline.bench.files import BenchResult
    from vitslim.recipe.schema import ReportConfig
    from vitslim.results import Estimate


def bench(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="ONNX files; the first is the baseline of speedups.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", help="Backend, such as onnxruntime:cpu, sim:a100 or sim:FILE.yaml; repeatable."),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Batch size; repeatable.")] = None,
    threads: Annotated[list[int] | None, typer.Option("--threads", min=1, help="CPU threads; repeatable.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Time for each file, batch and thread count. Default: 2.")
    ] = None,
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Measure the peak memory too: of a fresh process, on backends on the CPU."),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="List the time of each operator, from the profiler of ONNX Runtime.")
    ] = False,
    tensorrt_log: Annotated[
        Path | None,
        typer.Option(
            metavar="LOG",
            help="Read which 2:4 layers run on sparse kernels from the output of trtexec --sparsity=enable --verbose.",
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Build the latency table of this timm model instead of measuring files."),
    ] = None,
    gemms: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Predict or measure the GEMMs of a CSV file instead of ONNX files."),
    ] = None,
    workload: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Simulate the sequence workload of a CSV file instead of ONNX files."),
    ] = None,
    kwargs: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="With --table: an argument of timm.create_model; repeatable."),
    ] = None,
    precision: Annotated[
        Literal["float32", "int8"] | None,
        typer.Option(help="With --table: precision of the linear layers. Default: float32."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --table: folder that keeps finished tables by device and version. Default: the user's cache.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --table: file to write. Default: MODEL.BACKEND.table.json. With --gemms: CSV file for the times."
        ),
    ] = None,
    output: FormatOption = "table",
) -> None:
    """Measure the latency of ONNX files. All files run interleaved in one process; `sim:` backends simulate.

    With --table, build the latency table of a timm model: the latency of its matmuls on a grid of lengths, and of its
    other operators, fitted to pruned models, on one backend, at one batch size, thread count and precision. Latency
    budgets of prune stages and token schedules read this file. A finished table is kept in --cache and used again.

    With --gemms, read a CSV file with the columns M,N,K,dtype,sparse,count and optionally measured_us. A simulated
    backend predicts the latency of each GEMM and the error where measured_us is given; a measured backend measures it.

    With --workload, read a CSV file with one query of one attention head per line, as released with SpAtten, and
    simulate it on sim:spatten or sim:spatten-1/8.
    """
    from vitslim.cli.bench.latency_table import bench_table
    from vitslim.recipe.schema import ReportConfig

    details = memory or profile or tensorrt_log is not None
    _refuse(details and not files, "--memory, --profile and --tensorrt-log need ONNX files", "name the files")
    if workload is not None:
        from vitslim.cli.bench.sequences import bench_sequences

        others = bool(files) or table is not None or gemms is not None or seconds is not None or bool(kwargs)
        _refuse(others or bool(batch) or bool(threads) or out is not None,
                "--workload allows only --backend and --format", "remove the other options")  # fmt: skip
        bench_sequences(workload, backend or [], output)
        return
    if gemms is not None:
        from vitslim.cli.bench.gemms import bench_gemms

        _refuse(bool(files) or table is not None or seconds is not None or bool(batch) or bool(kwargs),
                "--gemms allows only --backend, --threads, --out and --format", "remove the other options")  # fmt: skip
        bench_gemms(gemms, backend or [], threads or [], out, output)
        return
    if table is not None:
        _refuse(bool(files), "FILE and --table cannot be combined", "give ONNX files or a model, not both")
        _refuse(seconds is not None, "--table does not use --seconds", "remove it: each matmul runs 8 rounds of 20 ms")
        bench_table(
            table, kwargs or [], backend or [], batch or [], threads or [], precision or "float32", cache, out, output
        )
        return
    _refuse(not files, "no files to measure", "give ONNX files, or a timm model with --table")
    _refuse(bool(kwargs), "--kwargs needs --table", "name a timm model with --table")
    _refuse(precision is not None, "--precision needs --table", "name a timm model with --table")
    _refuse(cache is not None, "--cache needs --table", "name a timm model with --table")
    _refuse(out is not None, "--out needs --table or --gemms", "name a timm model with --table")
    config = ReportConfig(
        backends=tuple(backend or ["onnxruntime:cpu"]),
        batches=tuple(batch or [1]),
        threads=tuple(threads or [1]),
        seconds=2.0 if seconds is None else seconds,
        memory=memory,
        profile=profile,
    )
    _bench_files(files or [], config, tensorrt_log, output)


def _refuse(invalid: bool, message: str, hint: str) -> None:
    if invalid:
        raise UsageError(message, hint)


def _bench_files(files: list[Path], config: ReportConfig, tensorrt_log: Path | None, output: str) -> None:
    from vitslim.cli.console import wide_stdout
    from vitslim.cli.progress.console_progress import ConsoleProgress
    from vitslim.pipeline.bench.files import bench as bench_files

    results = bench_files(files, config, ConsoleProgress(), tensorrt_log)
    if output == "json":
        typer.echo(results.model_dump_json(indent=2))
        return
    for table in _tables(results):
        wide_stdout().print(table)


def _tables(result: BenchResult) -> Iterator[Table]:
    """Yield a table of measured and one of simulated latencies, then the details of each file and estimate."""
    from vitslim.cli.bench.estimate_tables import estimate_tables
    from vitslim.cli.bench.file_tables import file_tables
    from vitslim.cli.console import plain_table

    measured = plain_table(
        f"measured on {result.environment.device}",
        ("file", "backend"),
        ("batch", "threads", "median", "spread", "runs", "speedup", "peak memory"),
    )
    simulated = plain_table("simulated", ("file", "backend"), ("batch", "latency", "speedup", "energy", "calibration"))
    for row in result.rows:
        for m in row.measurements:
            times = (f"{m.median_ms:.3f} ms", f"{m.spread_ms:.3f} ms")
            measured.add_row(row.file, m.backend, str(m.batch), str(m.threads), *times, str(m.n), _speedup(m.speedup),
                             "" if m.peak_memory_mb is None else f"{m.peak_memory_mb:.1f} MB")  # fmt: skip
        for e in row.estimates:
            simulated.add_row(
                row.file,
                e.backend,
                str(e.batch),
                f"{e.latency_ms:.3f} ms",
                _speedup(e.speedup),
                _energy(e),
                e.calibration,
            )
    yield from (table for table in (measured, simulated) if table.row_count)
    for row in result.rows:
        yield from file_tables(row)
        for e in row.estimates:
            yield from estimate_tables(row.file, e)


def _energy(found: Estimate) -> str:
    return f"{found.energy.total_mj:.3g} mJ" if found.energy else ""


def _speedup(value: float | None) -> str:
    return f"{value:.2f}x" if value else "baseline"
