"""`vitslim runs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitslim.cli.arguments import FormatOption

if TYPE_CHECKING:
    from vitslim.pipeline.run_folders import StageFolder

app = typer.Typer(help="List the runs of a folder, show their stored stages, and delete stages that no result uses.")
RootArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that holds the runs.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Result folder of a run, such as runs/quickstart.")]


@app.command("list")
def list_runs(root: RootArgument = Path("runs"), output: FormatOption = "table") -> None:
    """List runs with their results, the newest first."""
    from vitslim.cli.console import plain_table, wide_stdout
    from vitslim.pipeline import run_folders
    from vitslim.units import format_bytes

    runs = run_folders.list_runs(root)
    if output == "json":
        typer.echo(json.dumps([run.model_dump() for run in runs], indent=2))
        return
    table = plain_table(None, ("run", "model", "created", "result"), ("gates", "size", "stages"))
    for run in runs:
        gates = f"{run.gates_passed} of {run.gates}" if run.gates else ""
        result = run.headline if run.created else "no result yet"
        sizes = (format_bytes(run.result_bytes), format_bytes(run.stages_bytes))
        table.add_row(run.folder, run.model, run.created[:16].replace("T", " "), result, gates, *sizes)
    wide_stdout().print(table)


@app.command()
def show(run: RunArgument, output: FormatOption = "table") -> None:
    """Show the stored stages of a run; `vitslim report` shows its results."""
    from vitslim.pipeline.run_folders import stage_folders

    _print(run, stage_folders(run), output)


@app.command()
def prune(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Result folders of runs.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Delete all stored stages. The next run starts from the dense model.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
) -> None:
    """Delete the stored stages of runs that no result uses. Results stay."""
    from vitslim.pipeline.run_folders import prune_run
    from vitslim.units import format_bytes

    for run in runs:
        gone = prune_run(run, everything=everything, dry_run=dry_run)
        verb = "would delete" if dry_run else "deleted"
        count = f"{len(gone)} {'stage' if len(gone) == 1 else 'stages'}"
        typer.echo(f"{run}: {verb} {count}, {format_bytes(sum(stage.bytes for stage in gone))}")


def _print(run: Path, stages: tuple[StageFolder, ...], output: str) -> None:
    from vitslim.cli.console import plain_table, wide_stdout
    from vitslim.units import format_bytes, format_duration

    if output == "json":
        typer.echo(json.dumps([stage.model_dump() for stage in stages], indent=2))
        return
    table = plain_table(f"Stored stages of {run}", ("folder", "method", "used by the result"), ("duration", "size"))
    for stage in stages:
        method = stage.method or "checkpoints of an unfinished stage"
        used = "yes" if stage.used else "no"
        table.add_row(stage.folder, method, used, format_duration(stage.seconds), format_bytes(stage.bytes))
    wide_stdout().print(table)
