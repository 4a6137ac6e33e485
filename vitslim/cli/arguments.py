"""Arguments and options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RECIPE = "Packaged name, YAML file, zip of `vitslim recipes pack`, or git+URL@COMMIT#PATH."
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help=RECIPE)]
MoreValues = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="More values to change, as with --set.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe, such as seed=1; repeatable."),
]
DataOption = Annotated[
    Path | None, typer.Option(help="Image folder, or CSV or JSON-lines table; short for --set data.root=PATH.")
]
CheckpointOption = Annotated[
    Path | None, typer.Option(help="Weights (.safetensors, .pth, ...); short for --set model.checkpoint=FILE.")
]
FormatOption = Annotated[Literal["table", "json"], typer.Option("--format", help="Output format on stdout.")]


def all_overrides(
    overrides: list[str] | None, more: list[str] | None, data: Path | None = None, checkpoint: Path | None = None
) -> list[str]:
    """Return the values of `--set`, of further arguments, and of the options that are short for keys, if any."""
    values = [*(overrides or []), *(more or [])]
    values += [f"data.root={data}"] if data else []
    return values + ([f"model.checkpoint={checkpoint}"] if checkpoint else [])


def _allow_plugins(context: typer.Context, allowed: bool) -> bool:
    """Allow plugins until the command ends."""
    if allowed:
        from vitslim.recipe.plugins import allow_plugins

        context.with_resource(allow_plugins())
    return allowed


PluginsOption = Annotated[
    bool,
    typer.Option(
        "--allow-plugins",
        callback=_allow_plugins,
        help="Import the methods of other installed packages. They are programs that can do anything.",
    ),
]
