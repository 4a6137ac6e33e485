"""How long vitslim takes to answer when it has nothing to compute."""

from __future__ import annotations

from command import imports_torch, vitslim

COMMANDS = {"help": ("--help",), "plan": ("plan", "quickstart", "--no-trace")}
RUNS = 5


def run() -> dict[str, float]:
    """Milliseconds of each command, and 1 where it loads torch."""
    figures = {}
    for name, arguments in COMMANDS.items():
        figures[f"{name}_ms"] = 1e3 * min(vitslim(*arguments) for _ in range(RUNS))
        figures[f"{name}_imports_torch"] = float(imports_torch(*arguments))
    return figures
