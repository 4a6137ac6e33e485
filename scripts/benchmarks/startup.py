"""Startup time of commands that compute nothing."""

from __future__ import annotations

from command import imports_torch, vitslim

COMMANDS = {"help": ("--help",), "plan": ("plan", "quickstart", "--no-trace")}
RUNS = 5


def run() -> dict[str, float]:
    """Return the shortest milliseconds of each command, and 1 for commands that import torch."""
    figures = {}
    for name, arguments in COMMANDS.items():
        figures[f"{name}_ms"] = 1e3 * min(vitslim(*arguments) for _ in range(RUNS))
        figures[f"{name}_imports_torch"] = float(imports_torch(*arguments))
    return figures
