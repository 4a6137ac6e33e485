"""A CSV table with one row for each timm model, written row by row, so that an interrupted run continues."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import timm
from paths import RESULTS
from rich.progress import track
from timm_models import smallest_models, vit_family

MODELS = RESULTS / f"smallest-timm-{timm.__version__}.csv"
LIMIT_S = 900
"""Time limit of one model."""


def table_of(name: str) -> Path:
    """Return the path of the table of a benchmark, such as `axes-timm-1.0.31.csv`."""
    return RESULTS / f"{name}-timm-{timm.__version__}.csv"


def fill_table(table: Path, columns: Sequence[str], script: str) -> None:
    """Add the missing rows. `script MODEL` prints a row as JSON; it runs in a process of its own."""
    RESULTS.mkdir(exist_ok=True)
    models = _models()
    done = {row["model"] for row in read_rows(table)} if table.exists() else set()
    if not done:
        table.write_text(",".join(columns) + "\n", encoding="utf-8")
    # Small models first, so that an interrupted run has most of the rows.
    size = _axes_parameters()
    todo = sorted((model for model in models if model not in done), key=lambda model: size.get(model, sys.maxsize))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = as_completed([pool.submit(_row, script, model) for model in todo])
        for row in track((future.result() for future in found), "models", total=len(todo)):
            family = row["model"] in vit_family()
            _append(table, columns, {**row, "module": models[row["model"]], "vit_family": family})


def read_rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _models() -> dict[str, str]:
    """Return the timm module of each model: the smallest of each module, and the vision-transformer family."""
    by_module = {name: module for module, name in smallest_models(MODELS).items()}
    return by_module | {name: by_module.get(name, "") for name in vit_family()}


def _axes_parameters() -> dict[str, int]:
    """Return the number of parameters of each model in the table of `axes`."""
    table = table_of("axes")
    rows = read_rows(table) if table.exists() else []
    return {row["model"]: int(row["params_before"]) for row in rows if row["params_before"]}


def _row(script: str, model: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name(script)), model]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False)
        output, error = run.stdout, f"ended with exit code {run.returncode}"
    except subprocess.TimeoutExpired as expired:
        output, error = (expired.stdout or b"").decode(), f"not finished after {LIMIT_S} s"
    row: dict[str, Any] = {"model": model, "error": error}
    for line in _json_lines(output):
        row |= json.loads(line)
    return row


def _json_lines(output: str) -> Iterator[str]:
    return (line for line in output.splitlines() if line.startswith("{"))


def _append(table: Path, columns: Sequence[str], row: dict[str, Any]) -> None:
    with table.open("a", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, columns, extrasaction="ignore").writerow(
            {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        )
