"""The command line. Each command parses its arguments, calls one function and renders the result.

Errors are printed as one sentence with a hint, and set the exit code.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vitslim.cli import axes, plan, recipes, report, run, runs
from vitslim.cli.bench.command import bench
from vitslim.cli.compare import compare
from vitslim.cli.doctor import doctor
from vitslim.cli.inspect.command import inspect
from vitslim.cli.progress import INTERRUPTED
from vitslim.errors import RecipeError, VitslimError
from vitslim.ranks import is_first_launched, launched_ranks
from vitslim.version import __version__

app = typer.Typer(
    name="vitslim",
    help="Compress vision transformers by a YAML recipe: prune, distill, quantize, export to ONNX, and report.",
    epilog="Exit codes: 0 success, 1 a gate failed, 2 invalid usage or recipe, 3 a stage failed, 4 a backend is "
    "unavailable, 5 missing or corrupt input, 130 interrupted or another rank stopped (run again to resume).",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("bench")(bench)
app.command("inspect")(inspect)
app.command("compare")(compare)
app.command("axes")(axes.axes)
app.command("report")(report.report)
app.command("doctor")(doctor)
app.add_typer(recipes.app, name="recipes")
app.add_typer(runs.app, name="runs")


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"vitslim {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
) -> None:
    """Global options, which precede the command."""


def main() -> None:
    """Run the command line; print errors as messages and exit with their code."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("ORT_LOGGING_LEVEL", "3")
    if launched_ranks() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each rank would repeat PyTorch's warnings
    try:
        code = app(
            sys.argv[1:] or ["--help"], standalone_mode=False
        )  # typer returns the code of an Exit, and 130 after Ctrl-C
    except VitslimError as error:
        if debug:
            raise
        sys.exit(_explain(error))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        sys.exit(_explain_unexpected(error))
    if code == INTERRUPTED and is_first_launched():
        typer.echo("\ninterrupted: run the same command again to resume after the last finished stage", err=True)
    if code:
        sys.exit(code)


def _explain(error: VitslimError) -> int:
    # Of several ranks the first one with an error reports it; before they have joined, rank 0 does.
    if error.is_reported or (error.is_reported is None and not is_first_launched()):
        return error.exit_code
    typer.echo(f"error: {error.message}", err=True)
    if isinstance(error, RecipeError):
        for problem in error.problems:
            typer.echo(f"  {problem.where}: {problem.message}" if problem.where else f"  {problem.message}", err=True)
            if problem.hint:
                typer.echo(f"    hint: {problem.hint}", err=True)
    if error.hint:
        typer.echo(f"hint: {error.hint}", err=True)
    return error.exit_code


def _explain_unexpected(error: Exception) -> int:
    format_message = getattr(error, "format_message", None)
    if format_message is not None and hasattr(error, "exit_code"):
        typer.echo(f"error: {format_message()}", err=True)
        typer.echo("hint: see 'vitslim --help'", err=True)
        return int(error.exit_code)
    typer.echo(f"error: unexpected {type(error).__name__}: {error}", err=True)
    typer.echo(
        "hint: this is a bug in vitslim; run again with 'vitslim --debug ...' and report the traceback", err=True
    )
    return VitslimError.exit_code


if __name__ == "__main__":
    main()
