"""`vitslim recipes`."""

from __future__ import annotations

import json

import typer

from vitslim.cli.arguments import MoreValues, RecipeArgument, SetOption

app = typer.Typer(help="List, show, check and start recipes.")


@app.command("list")
def list_recipes() -> None:
    """List the packaged recipes."""
    from vitslim.cli.console import plain_table, stdout
    from vitslim.recipe import packaged_recipes

    table = plain_table(None, ("recipe", "what it does"))
    for info in packaged_recipes():
        table.add_row(info.name, info.description)
    stdout().print(table)


@app.command()
def show(recipe: RecipeArgument, more: MoreValues = None, overrides: SetOption = None) -> None:
    """Print a recipe with everything it extends and every default filled in."""
    from vitslim.recipe import load_recipe, recipe_text

    typer.echo(recipe_text(load_recipe(recipe, [*(overrides or []), *(more or [])], partial=True)), nl=False)


@app.command()
def validate(recipe: RecipeArgument, more: MoreValues = None, overrides: SetOption = None) -> None:
    """Check a recipe and the order of its stages; lists every problem at once."""
    from vitslim.pipeline.plan import build_plan
    from vitslim.recipe import load_recipe

    result = build_plan(load_recipe(recipe, [*(overrides or []), *(more or [])]), trace=False)
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{result.name}: valid, {len(result.rows) - 1} stages")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors that complete and check YAML."""
    from vitslim.recipe import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


@app.command()
def new(
    name: str, timm: str = typer.Option("deit_tiny_patch16_224", help="timm model that the recipe starts from.")
) -> None:
    """Print a commented recipe to start from."""
    from vitslim.recipe import new_recipe_text

    typer.echo(new_recipe_text(name, timm), nl=False)
