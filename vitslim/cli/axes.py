"""`vitslim axes`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from vitslim.cli.arguments import FormatOption

if TYPE_CHECKING:
    from rich.table import Table

    from vitslim.graph.axes import Axis, AxisTable
    from vitslim.graph.verify import Verification


def axes(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a timm model.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Permute every prunable axis and check that the output does not change.")
    ] = False,
    output: FormatOption = "table",
) -> None:
    """Show the prunable and the frozen axes of a timm model.

    An axis is a group of parameter dimensions that can only be pruned together. Frozen axes are shown with the reason.
    """
    from vitslim.cli.console import stdout
    from vitslim.errors import StageError
    from vitslim.graph.coverage import prunable_share
    from vitslim.graph.trace import trace_timm
    from vitslim.graph.verify import verify_axes

    graph = trace_timm(model, {})
    found = verify_axes(graph) if verify else None
    if output == "json":
        typer.echo(json.dumps(_json(model, graph.axes, prunable_share(graph), found), indent=1))
    else:
        stdout().print(_table(graph.axes))
        stdout().print()
        stdout().print(_frozen(graph.axes))
        typer.echo(_summary(graph.axes, prunable_share(graph)), err=True)
    if found is None:
        return
    error = f"{found.max_error:.1e} ({found.dtype})"
    typer.echo(f"verify: permuting every prunable axis changes the output by at most {error}", err=True)
    if not found.holds:
        raise StageError(
            f"the axes of {model} are wrong: permuting them changes the output by {error}",
            "do not prune this model, and report this as a bug in vitslim",
        )


def _summary(table: AxisTable, share: float) -> str:
    lines = [f"{len(table.prunable)} prunable axes; {share:.2%} of the parameters are in tensors with a prunable axis"]
    lines += [f"no rule for {name} ({n} calls): the axes that it touches are frozen"
              for name, n in table.unknown_ops.items()]  # fmt: skip
    return "\n".join(lines)


def _json(model: str, table: AxisTable, share: float, found: Verification | None) -> dict[str, object]:
    return {
        "model": model,
        "axes": [
            {
                "axis": axis.name,
                "kind": axis.kind,
                "size": axis.size,
                "tied": [f"{site.parameter}:{site.dim}" for site in axis.sites],
                "frozen": axis.frozen,
            }
            for axis in table.axes
        ],
        "prunable_share": share,
        "unknown_ops": table.unknown_ops,
        "verify": None if found is None else {"max_error": found.max_error, "dtype": found.dtype},
    }


def _table(table: AxisTable) -> Table:
    """Return the table of prunable axes."""
    from vitslim.cli.console import plain_table

    view = plain_table(None, ("prunable axis",), ("size", "parameters"))
    view.columns[0].no_wrap = True
    for axis in table.prunable:
        view.add_row(axis.name, str(axis.size), str(len({site.parameter for site in axis.sites})))
    return view


def _frozen(table: AxisTable) -> Table:
    """Return the table of frozen axes by reason; some models have hundreds of them."""
    from vitslim.cli.console import plain_table

    reasons: dict[str, list[Axis]] = {}
    for axis in table.axes:
        if axis.frozen and axis.sites:
            reasons.setdefault(axis.frozen, []).append(axis)
    view = plain_table("frozen axes", ("reason: the axis ...", "axes", "longest"))
    for reason, axes in reasons.items():
        longest = max(axes, key=lambda axis: axis.size)
        view.add_row(reason, str(len(axes)), f"{longest.name} ({longest.size})")
    return view
