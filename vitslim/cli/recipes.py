"""`vitslim recipes`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vitslim.cli.arguments import (
    RECIPE,
    FormatOption,
    MoreValues,
    PluginsOption,
    RecipeArgument,
    SetOption,
    all_overrides,
)

app = typer.Typer(help="List, show, validate, describe, compare and pack recipes, or print a new one.")


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
def show(
    recipe: RecipeArgument,
    more: MoreValues = None,
    overrides: SetOption = None,
    plugins: PluginsOption = False,  # noqa: ARG001  its callback acts
) -> None:
    """Print a recipe with its base recipes merged and every default filled in."""
    from vitslim.recipe import load_recipe, recipe_text

    typer.echo(recipe_text(load_recipe(recipe, all_overrides(overrides, more), partial=True)), nl=False)


@app.command()
def validate(
    recipe: RecipeArgument,
    more: MoreValues = None,
    overrides: SetOption = None,
    plugins: PluginsOption = False,  # noqa: ARG001  its callback acts
) -> None:
    """Check the values of a recipe and the order of its stages; report all problems at once."""
    from vitslim.pipeline.plan import build_plan
    from vitslim.recipe import load_recipe

    result = build_plan(load_recipe(recipe, all_overrides(overrides, more)), trace=False)
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{result.name}: valid, {len(result.rows) - 1} stages")


@app.command()
def schema(
    plugins: PluginsOption = False,  # noqa: ARG001  its callback acts
) -> None:
    """Print the JSON schema of recipes, for editors that complete and validate YAML."""
    from vitslim.recipe import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


@app.command()
def describe(
    method: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="A method such as two-four, or a kind such as export.")
    ] = None,
    plugins: PluginsOption = False,  # noqa: ARG001  its callback acts
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


@app.command()
def pack(
    recipe: RecipeArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE.zip", help="Archive to write. Default: NAME.zip.")] = None,
    weights: Annotated[bool, typer.Option("--weights", help="Include checkpoints.")] = False,
    plugins: PluginsOption = False,  # noqa: ARG001  its callback acts
) -> None:
    """Write a recipe, its base recipes, and the class lists, tables and settings that they name to a zip archive."""
    from vitslim.recipe.sharing import pack_recipe

    packed, path = pack_recipe(recipe, out, weights=weights)
    for name in packed.names:
        typer.echo(name)
    for left_out in packed.left_out:
        typer.echo(f"left out: {left_out}", err=True)
    typer.echo(f"{path}: {len(packed.names)} files", err=True)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help=RECIPE)],
    second: Annotated[str, typer.Argument(metavar="B", help=RECIPE)],
    plugins: PluginsOption = False,  # noqa: ARG001  its callback acts
    output: FormatOption = "table",
) -> None:
    """List the keys that differ between two recipes, with every default filled in."""
    from rich.text import Text

    from vitslim.cli.console import plain_table, wide_stdout
    from vitslim.recipe import load_recipe
    from vitslim.recipe.sharing import differences

    found = differences(load_recipe(first, partial=True), load_recipe(second, partial=True))
    if output == "json":
        rows = [{"key": one.key, "a": list(one.values), "b": list(one.others)} for one in found]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = plain_table(None, ("key", first, second))
    for one in found:
        table.add_row(*map(Text, (one.key, _value(one.values), _value(one.others))))
    wide_stdout().print(table)


def _value(values: tuple[Any, ...]) -> str:
    """Return a value as in JSON; `-` for a missing key."""
    return json.dumps(values[0], ensure_ascii=False) if values else "-"
