"""Lists the benchmarks, or runs one and prints its figures; `--json FILE` writes them with the environment."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import axes
import gpu_model
import published
import quickstart
import startup
import systolic
from rich.console import Console
from rich.table import Table

from vitslim.backends.environment import environment
from vitslim.errors import closest

Figures = dict[str, float]

BENCHMARKS: dict[str, tuple[str, Callable[[], Figures]]] = {
    "axes": (axes.DESCRIPTION, axes.run),
    "gpu-model": (gpu_model.DESCRIPTION, gpu_model.run),
    "published": (published.DESCRIPTION, published.run),
    "quickstart": (quickstart.DESCRIPTION, quickstart.run),
    "startup": (startup.DESCRIPTION, startup.run),
    "systolic": (systolic.DESCRIPTION, systolic.run),
}


def main() -> int:
    """Parse the command line; the exit code is 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Run one of vitslim's benchmarks.")
    parser.add_argument("name", nargs="?", help="benchmark to run; all are listed when left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write name, figures and environment here")
    arguments = parser.parse_args()
    if arguments.name is None:
        _print_table("benchmarks", {name: description for name, (description, _) in BENCHMARKS.items()})
        return 0
    if arguments.name not in BENCHMARKS:
        print(f"there is no benchmark '{arguments.name}'\nhint: {closest(arguments.name, BENCHMARKS)}", file=sys.stderr)
        return 2
    figures = BENCHMARKS[arguments.name][1]()
    _print_table(arguments.name, {name: f"{value:.6g}" for name, value in figures.items()})
    if arguments.json:
        result = {"name": arguments.name, "figures": figures, "environment": environment().model_dump()}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _print_table(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
