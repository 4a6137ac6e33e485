"""`vitslim plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vitslim.cli.arguments import (
    CheckpointOption,
    DataOption,
    FormatOption,
    MoreValues,
    PluginsOption,
    RecipeArgument,
    SetOption,
    all_overrides,
)

if TYPE_CHECKING:
    from rich.table import Table

    from vitslim.results import Plan


def plan(
    recipe: RecipeArgument,
    more: MoreValues = None,
    overrides: SetOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    trace: Annotated[
        bool, typer.Option("--trace/--no-trace", help="Build the model to estimate its costs; --no-trace is instant.")
    ] = True,
    plugins: PluginsOption = False,  # noqa: ARG001  its callback acts
    output: FormatOption = "table",
) -> None:
    """Show what a recipe will do. Estimates the cost of the model after each stage, and how long the stage takes on
    this machine; runs and writes nothing."""
    from vitslim.cli.console import stdout
    from vitslim.pipeline.duration.estimate import describe_durations
    from vitslim.pipeline.plan import build_plan
    from vitslim.recipe import load_recipe

    values = all_overrides(overrides, more, data, checkpoint)
    result = build_plan(load_recipe(recipe, values, partial=True), trace=trace, durations=trace)
    if output == "json":
        typer.echo(result.model_dump_json(indent=2))
        return
    stdout().print(_table(result))
    if result.seconds is not None:
        seconds = {f"{place:02d}-{row.kind}": row.seconds or 0.0 for place, row in enumerate(result.rows)}
        typer.echo(describe_durations(seconds, result.seconds))
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _table(plan: Plan) -> Table:
    from vitslim.cli.console import plain_table
    from vitslim.units import flops, format_bytes, format_count

    dense = plan.rows[0].cost
    right = ("params", "MACs", "FLOPs", "BOPs", "weights", "MACs ratio") if dense else ()
    table = plain_table(f"{plan.name}: {plan.model}", ("", "stage", "method"), right)
    for position, row in enumerate(plan.rows):
        cells = [f"{position:02d}", row.kind, row.method]
        if row.cost and dense:
            cost = row.cost
            numbers = (
                *map(format_count, (cost.params, cost.macs, flops(cost.macs), cost.bops)),
                format_bytes(cost.weight_bytes),
                f"{dense.macs / cost.macs:.2f}x",
            )
            cells += [f"~{number}" if row.approximate else number for number in numbers]
        table.add_row(*cells)
    return table
