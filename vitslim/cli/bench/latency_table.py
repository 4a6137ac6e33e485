"""`vitslim bench --table`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from vitslim.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from vitslim.latency_grid import Precision
    from vitslim.recipe.schema import Model
    from vitslim.results import LatencyTable

T = TypeVar("T")


def bench_table(
    name: str, kwargs: Sequence[str], backends: Sequence[str], batches: Sequence[int], threads: Sequence[int],
    precision: Precision, cache: Path | None, out: Path | None, output: str,
) -> None:  # fmt: skip
    """Build the latency table of a timm model, write it, and print a summary or, as JSON, the table."""
    from vitslim.backends.registry import parse_backend
    from vitslim.cli.console import stdout
    from vitslim.cli.progress.console_progress import ConsoleProgress
    from vitslim.pipeline.bench.table_cache import cached_table, default_cache
    from vitslim.pipeline.table_file import check_writable, default_path, write_table

    backend = parse_backend(_only(backends, "onnxruntime:cpu", "--backend"))
    path = out or default_path(name, f"{backend.name}.int8" if precision == "int8" else backend.name)
    check_writable(path)
    progress = ConsoleProgress()
    table = cached_table(
        _model(name, kwargs), backend, _only(batches, 1, "--batch"), _only(threads, 1, "--threads"), precision,
        cache or default_cache(), progress,
    )  # fmt: skip
    write_table(table, path)
    if output == "json":
        typer.echo(table.model_dump_json())
    else:
        stdout().print(_summary(table))
    progress.say(f"wrote {path}; a recipe reads it with {{latency: 0.7, table: {path.name}}} as budget or schedule")


def _only(values: Sequence[T], default: T, option: str) -> T:
    if len(values) > 1:
        raise UsageError(f"a latency table needs one {option}, got {len(values)}", "build a table for each of them")
    return values[0] if values else default


def _model(name: str, kwargs: Sequence[str]) -> Model:
    from pydantic import ValidationError

    from vitslim.recipe.document.yaml12 import parse_yaml
    from vitslim.recipe.schema import Model

    pairs = [text.partition("=") for text in kwargs]
    try:
        return Model(timm=name, kwargs={key: parse_yaml(value, f"--kwargs {key}") for key, _, value in pairs})
    except ValidationError as error:
        first = error.errors()[0]
        key = next((str(part) for part in first["loc"][1:2]), "")
        if first["loc"][0] == "timm":
            raise UsageError(
                f"'{name}' is not the name of a timm model", "for example deit_tiny_patch16_224"
            ) from error
        raise UsageError(
            f"--kwargs {key} needs a number, a string, true or false", "for example img_size=128"
        ) from error


def _summary(table: LatencyTable) -> Table:
    from vitslim.cli.console import plain_table

    threads = f", {table.threads} threads" if table.threads else ""
    title = f"{table.model} on {table.backend}, {table.precision}, batch {table.batch}{threads} ({table.kind})"
    view = plain_table(title, ("",), ("value",))
    grids = [("linear", table.matmuls.linear), ("attention", table.matmuls.attention)]
    for name, grid in grids:
        if grid is not None:
            shape = " x ".join(str(len(lengths)) for lengths in grid.lengths)
            view.add_row(f"{name} entries (count x rows x reduce x columns)", f"{shape} = {len(grid.ms)}")
    view.add_row("dense model", f"{table.dense_ms:.3f} ms")
    view.add_row("its matmuls", f"{table.dense_ms - table.rest_ms:.3f} ms")
    view.add_row("other operators", f"{table.rest_ms:.3f} ms")
    view.add_row("of these, proportional to the number of tokens", f"{table.token_ms:.3f} ms")
    view.add_row("operators of one token squeeze other than matmuls", f"{table.squeeze_ms:.3f} ms")
    if table.check is not None:
        error = f"{100 * table.check.median_error:.1f} %, worst {100 * table.check.worst_error:.1f} %"
        view.add_row(f"error on {table.check.models} pruned models, cross-validated: median", error)
    if table.kind == "measured":
        view.add_row("timed runs of each matmul, at least", str(table.n))
        view.add_row("spread of the runs (interquartile range over median)", f"{100 * table.spread:.1f} %")
    return view
