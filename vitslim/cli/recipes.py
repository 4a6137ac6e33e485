"""`vitslim recipes`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from vitslim.cli.arguments import FormatOption, MoreValues, RecipeArgument, SetOption

app = typer.Typer(help="List, show, validate and describe recipes, or print a new one.")


@app.command("list")
def list_recipes() -> None:
    """List the packaged recipes."""
    from vitslim.cli.console import plain_table, stdout
    from vitslim.recipe import packaged_recipes

    table = plain_table(None, ("recipe", "description"))
    for info in packaged_recipes():
        table.add_row(info.name, info.description)
    stdout().print(table)


@app.command()
def show(recipe: RecipeArgument, more: MoreValues = None, overrides: SetOption = None) -> None:
    """Print a recipe with its base recipes merged and every default filled in."""
    from vitslim.recipe import load_recipe, recipe_text

    typer.echo(recipe_text(load_recipe(recipe, [*(overrides or []), *(more or [])], partial=True)), nl=False)


@app.command()
def validate(recipe: RecipeArgument, more: MoreValues = None, overrides: SetOption = None) -> None:
    """Check the values of a recipe and the order of its stages; report all problems at once."""
    from vitslim.pipeline.plan import build_plan
    from vitslim.recipe import load_recipe

    result = build_plan(load_recipe(recipe, [*(overrides or []), *(more or [])]), trace=False)
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{result.name}: valid, {len(result.rows) - 1} stages")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors that complete and validate YAML."""
    from vitslim.recipe import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


@app.command()
def describe(
    method: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="A method such as two-four, or a kind such as export.")
    ] = None,
    output: FormatOption = "table",
) -> None:
    """Describe the keys of a method, with defaults and allowed values; without METHOD, list all methods."""
    from vitslim.cli.method_table import print_keys, print_methods
    from vitslim.recipe import describe_methods, find_methods

    methods = describe_methods() if method is None else find_methods(method)
    if output == "json":
        typer.echo(json.dumps([asdict(info) for info in methods], indent=2))
    elif method is None:
        print_methods(methods)
    else:
        print_keys(methods)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the recipe.")],
    timm: Annotated[str, typer.Option(metavar="MODEL", help="Name of the timm model.")] = "deit_tiny_patch16_224",
) -> None:
    """Print a commented recipe to start from."""
    from vitslim.recipe import new_recipe_text

    typer.echo(new_recipe_text(name, timm), nl=False)
