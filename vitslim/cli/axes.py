"""`vitslim axes`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from vitslim.cli.arguments import FormatOption

if TYPE_CHECKING:
    from rich.table import Table

    from vitslim.graph.axes import AxisTable


def axes(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a timm model.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Permute every prunable axis and check that the output stays the same.")
    ] = False,
    output: FormatOption = "table",
) -> None:
    """Show the axes of a timm model. Each is a group that can only be pruned as one, or frozen for a reason."""
    from vitslim.cli.console import stdout
    from vitslim.errors import StageError
    from vitslim.graph.trace import trace_timm
    from vitslim.graph.verify import MAX_ERROR, verify_axes

    graph = trace_timm(model, {})
    error = verify_axes(graph).max_error if verify else None
    if output == "json":
        typer.echo(json.dumps({"model": model, "axes": _rows(graph.axes), "verify_max_error": error}, indent=1))
    else:
        stdout().print(_table(graph.axes))
    if error is None:
        return
    typer.echo(f"verify: largest change of the output under permutation {error:.1e}", err=True)
    if error > MAX_ERROR:
        raise StageError(f"axis inference is wrong for {model}: permuting its axes changes the output by {error:.1e}")


def _rows(table: AxisTable) -> list[dict[str, object]]:
    return [
        {
            "axis": axis.name,
            "kind": axis.kind,
            "size": axis.size,
            "tied": [f"{site.parameter}:{site.dim}" for site in axis.sites],
            "frozen": axis.frozen,
        }
        for axis in table.axes
    ]


def _table(table: AxisTable) -> Table:
    from vitslim.cli.console import plain_table

    view = plain_table(None, ("axis", "size", "parameters tied", "frozen because"))
    for axis in table.axes:
        if axis.sites:
            view.add_row(axis.name, str(axis.size), str(len({site.parameter for site in axis.sites})), axis.frozen)
    return view
