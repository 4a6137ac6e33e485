"""`vitslim bench --workload`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from vitslim.errors import UsageError


def bench_sequences(path: Path, backends: Sequence[str], output: str) -> None:
    """Simulate the sequence workload of a CSV file on each backend, and print the estimates."""
    from vitslim.cli.bench.estimate_tables import estimate_tables
    from vitslim.cli.console import wide_stdout
    from vitslim.pipeline.bench.sequences import bench_sequences as estimates_of

    if not backends:
        raise UsageError("--workload needs a --backend", "for example --backend sim:spatten")
    result = estimates_of(path, backends)
    if output == "json":
        typer.echo(result.model_dump_json(indent=2))
        return
    for estimate in result.estimates:
        for table in estimate_tables(str(path), estimate):
            wide_stdout().print(table)
