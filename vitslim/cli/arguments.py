"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a packaged recipe, or a YAML file.")]
MoreValues = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="More values to change, as after --set.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe, such as seed=1; may be repeated."),
]
FormatOption = Annotated[Literal["table", "json"], typer.Option("--format", help="Format of the data on stdout.")]
