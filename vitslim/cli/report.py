"""`vitslim report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `vitslim run` wrote.")],
    output: Annotated[
        Literal["table", "json", "markdown", "junit", "html"], typer.Option("--format", help="Output format on stdout.")
    ] = "table",
) -> None:
    """Print the report of a finished run. Checks its files against their checksums first."""
    from vitslim import report as renderers
    from vitslim.cli.console import stdout
    from vitslim.pipeline.run.stored.artifact import load_artifact

    loaded = load_artifact(folder).report
    if output == "table":
        renderers.render_terminal(loaded, stdout(), folder)
        return
    render = {
        "json": renderers.render_json,
        "markdown": renderers.render_markdown,
        "junit": renderers.junit_xml,
        "html": renderers.render_html,
    }[output]
    typer.echo(render(loaded))
