"""`vitslim run`."""

from __future__ import annotations

from pathlib import Path
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
from vitslim.errors import GateError, UsageError
from vitslim.ranks import is_first_launched

if TYPE_CHECKING:
    from vitslim.pipeline.run.stored.artifact import Artifact


def run(
    recipe: RecipeArgument,
    more: MoreValues = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result. Default: runs/NAME.")] = None,
    overrides: SetOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all stages again, including finished ones.")] = False,
    frozen: Annotated[
        bool,
        typer.Option("--frozen", help="Refuse to run if a version or an input differs from the lock file RECIPE."),
    ] = False,
    events: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write progress and results to FILE as JSON lines.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write losses and metrics to DIR for TensorBoard.")
    ] = None,
    plugins: PluginsOption = False,  # noqa: ARG001  its callback acts
    output: FormatOption = "table",
) -> None:
    """Compress a model by a recipe. Writes ONNX and a report, then checks the gates of the recipe."""
    from vitslim.recipe import load_recipe, read_locked

    if frozen and (overrides or more):
        raise UsageError("--frozen allows no other values than those of the lock file", "remove --set, or --frozen")
    from vitslim.cli.progress.run_progress import run_progress

    with run_progress(events, tensorboard) as progress:
        locked = read_locked(recipe) if frozen else None
        loaded = load_recipe(recipe, all_overrides(overrides, more, data, checkpoint))
        from vitslim.pipeline.run.verb import run as run_recipe

        folder = out or Path("runs") / loaded.name
        artifact = run_recipe(loaded, folder, fresh=fresh, progress=progress, locked=locked)
        if is_first_launched():
            _show(artifact, folder, output)


def _show(artifact: Artifact, folder: Path, output: str) -> None:
    """Print the report of a run. Raises GateError if a gate failed."""
    from vitslim.cli.console import stdout
    from vitslim.report import render_json, render_terminal

    if output == "json":
        typer.echo(render_json(artifact.report))
    else:
        render_terminal(artifact.report, stdout(), folder)
    failed = [gate.name for gate in artifact.report.gates if not gate.passed]
    if failed:
        raise GateError(f"{len(failed)} of {len(artifact.report.gates)} gates failed: {', '.join(failed)}")
