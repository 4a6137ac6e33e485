"""`vitslim doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from vitslim.cli.arguments import FormatOption


def doctor(output: FormatOption = "table") -> None:
    """Check this machine: versions, processor, memory, disk, backends, and the noise of measurements."""
    from vitslim.cli.console import plain_table, wide_stdout
    from vitslim.pipeline.doctor import check_machine

    checks = check_machine(Path.cwd())
    if output == "json":
        typer.echo(json.dumps([check.model_dump() for check in checks], indent=2))
        return
    table = plain_table(None, ("check", "status", "found"))
    for check in checks:
        table.add_row(check.name, check.status, check.found)
        if check.hint:
            table.add_row("", "", f"hint: {check.hint}")
    wide_stdout().print(table)
