"""Arguments and options shared by several commands."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a packaged recipe, or path of a YAML file.")
]
MoreValues = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="More values to change, as with --set.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe, such as seed=1; repeatable."),
]
FormatOption = Annotated[Literal["table", "json"], typer.Option("--format", help="Output format on stdout.")]
