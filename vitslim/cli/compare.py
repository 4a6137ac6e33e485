"""`vitslim compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitslim.cli.arguments import FormatOption
from vitslim.errors import GateError, UsageError

if TYPE_CHECKING:
    from vitslim.pipeline.compare import Difference

RESULT = "Folder of a run, its report.json, or an ONNX file."


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help=RESULT)],
    second: Annotated[Path | None, typer.Argument(metavar="B", help=f"{RESULT} It is compared with A.")] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Compare A with this result, and exit with code 1 if A is worse beyond the tolerance."),
    ] = None,
    points: Annotated[float, typer.Option(min=0, help="Tolerance of accuracies, in points.")] = 1.0,
    percent: Annotated[float, typer.Option(min=0, help="Tolerance of all other metrics, in percent.")] = 5.0,
    output: FormatOption = "table",
) -> None:
    """Compare two results, or check one against a baseline. Latencies count as speedups over the dense model."""
    if second is not None and baseline is None:
        before, after = first, second
    elif second is None and baseline is not None:
        before, after = baseline, first
    else:
        raise UsageError("give two results, or one result and --baseline", "vitslim compare runs/a runs/b")
    from vitslim.pipeline.compare import compare as compare_results

    found = compare_results(before, after)
    if output == "json":
        typer.echo(json.dumps([one.model_dump() | {"change": one.change} for one in found], indent=2))
    else:
        _print(found, before, after)
    worse = [one.metric for one in found if one.is_regression(points, percent)]
    if baseline is not None and worse:
        count = f"{len(worse)} of {len(found)} metrics are worse than the baseline or missing"
        raise GateError(f"{count}: {'; '.join(worse)}", "raise --points or --percent if this is intended")


def _print(found: tuple[Difference, ...], before: Path, after: Path) -> None:
    from vitslim.cli.console import plain_table, wide_stdout

    table = plain_table(None, ("metric",), (str(before), str(after), "change"))
    for one in found:
        table.add_row(one.metric, _shown(one.baseline, one.unit), _shown(one.result, one.unit), _change(one))
    wide_stdout().print(table)


def _shown(value: float | None, unit: str) -> str:
    from vitslim import units

    if value is None:
        return "-"
    formats = {"fraction": units.format_percent, "cosine": "{:.4f}".format, "dB": "{:.1f} dB".format,
               "bytes": units.format_bytes, "count": units.format_count, "ratio": units.format_factor,
               "ms": units.format_ms, "mJ": "{:.3g} mJ".format}  # fmt: skip
    return formats[unit](value)


def _change(one: Difference) -> str:
    if one.change is None:
        return ""
    if one.unit == "cosine":
        return f"{one.change:+.4f}"
    return f"{100 * one.change:+.1f} {'points' if one.unit == 'fraction' else '%'}"
