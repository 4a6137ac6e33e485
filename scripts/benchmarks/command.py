"""Run the vitslim command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from time import perf_counter


def vitslim(*arguments: str) -> float:
    """Return the seconds of a command, with its standard error shown. Exits if the command fails."""
    command = [sys.executable, "-m", "vitslim.cli.app", *arguments]
    start = perf_counter()
    result = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    seconds = perf_counter() - start
    if result.returncode:
        sys.exit(f"error: `vitslim {' '.join(arguments)}` ended with exit code {result.returncode}")
    return seconds


def imports_torch(*arguments: str) -> bool:
    """Return whether a command imports torch."""
    command = [sys.executable, "-X", "importtime", "-m", "vitslim.cli.app", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return any(line.rpartition("|")[2].strip() == "torch" for line in result.stderr.splitlines())
