"""`vitslim bench --gemms`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vitslim.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from vitslim.pipeline.bench.gemms import GemmResult

ROWS_MAX = 40
"""Rows in a terminal table; `--format json` and `--out` write all of them."""


def bench_gemms(path: Path, backends: Sequence[str], threads: Sequence[int], out: Path | None, output: str) -> None:
    """Predict or measure the GEMMs of a CSV file, print them with the errors of predictions, and write the times."""
    from vitslim.backends.gemm_list import read_gemms, write_gemms
    from vitslim.backends.registry import parse_backend
    from vitslim.cli.console import wide_stdout
    from vitslim.cli.progress.console_progress import ConsoleProgress
    from vitslim.pipeline.bench.gemms import bench_gemms as times_of

    if len(backends) != 1 or len(threads) > 1:
        raise UsageError("--gemms needs one --backend and at most one --threads", "for example --backend sim:a100")
    backend = parse_backend(backends[0])
    gemms = read_gemms(path)
    progress = ConsoleProgress()
    result = times_of(gemms, backend, threads[0] if threads else 1, progress)
    if out is not None:
        filled = [replace(g, measured_us=row.measured_us) for g, row in zip(gemms, result.rows, strict=True)]
        write_gemms(filled, out, [row.predicted_us for row in result.rows if row.predicted_us is not None])
        progress.say(f"wrote {out}")
    if output == "json":
        typer.echo(result.model_dump_json(indent=2))
        return
    for table in _tables(result):
        wide_stdout().print(table)


def _tables(result: GemmResult) -> Iterator[Table]:
    """Yield tables of GEMMs, errors and speedups, without empty ones."""
    from vitslim.cli.console import plain_table

    simulated = result.kind == "simulated"
    times = ("predicted us", "measured us") if simulated else ("measured us",)
    head = f"{result.kind} on {result.backend if simulated else result.environment.device}"
    labels = ("expected error", "calibration") if simulated else ()
    rows = plain_table(head, ("M x N x K", "dtype", "weights"), ("count", *times, *labels))
    for r in result.rows[:ROWS_MAX]:
        found = (_us(r.predicted_us), _us(r.measured_us)) if simulated else (_us(r.measured_us),)
        label = (r.expected_error, r.calibration) if simulated else ()
        rows.add_row(f"{r.m} x {r.n} x {r.k}", r.dtype, "2:4" if r.sparse else "dense", str(r.count), *found, *label)
    if len(result.rows) > ROWS_MAX:
        rows.add_row(f"... and {len(result.rows) - ROWS_MAX} more (--format json)")
    yield rows
    if result.errors:
        errors = plain_table("error of the prediction", ("model", "GEMMs"), ("rows", "mean", "median", "90th pct."))
        for e in result.errors:
            values = (f"{100 * value:.1f} %" for value in (e.mean, e.median, e.p90))
            errors.add_row(e.model, e.name, str(e.rows), *values)
        yield errors
    if result.speedups:
        columns = ("pairs", "mean error", "rank corr.", "direction", "slowdowns", "caught", "false")
        ratios = plain_table("speedup by 2:4, predicted against measured", ("GEMMs",), columns)
        for s in result.speedups:
            shares = (f"{100 * s.mean_error:.1f} %", f"{s.rank_correlation:.2f}", f"{100 * s.direction_right:.1f} %")
            counts = (str(value) for value in (s.slowdowns, s.caught, s.false_slowdowns))
            ratios.add_row(s.name, str(s.pairs), *shares, *counts)
        yield ratios


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 100 else f"{value:.1f}"
