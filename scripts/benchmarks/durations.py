"""How long the steps of vitslim and of other tools take, their peak memory, and how the time grows.

Every row is a process of its own, with all cores; rows of one model follow one another. Finished rows are kept in
runs/time-bench, so that an interrupted run continues; delete the folder to start again. `--only TEXT` measures the rows
whose name contains TEXT. Takes about an hour and a half on two idle cores. Needs the folder that VITSLIM_SHARED_DATA
names, and `nncf` and `torch_pruning` for their rows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from by_processor import result_here
from duration_jobs import MODELS, PRUNER, PTQ, QUANTIZERS, Job, compared_jobs, growth_jobs
from paths import RUNS, require_shared
from result_file import write_result

RESULT = "time"
FOLDER = RUNS / "time-bench"
PACKAGES = {QUANTIZERS[2]: "nncf", PRUNER: "torch_pruning"}
CACHE = "XDG_CACHE_HOME"
"""Decoded images are kept in a folder of the benchmark: the first run of a model decodes, the later ones do not."""


def run(only: str = "") -> dict[str, float]:
    """Write the result of this processor; return the seconds and the peak memory of each row."""
    require_shared("imagenette")
    rows: dict[str, Any] = {}
    for job in (*compared_jobs(), *growth_jobs()):
        if (row := _row(job, only in job.name)) is not None:
            rows[job.name] = row
            write_result(result_here(RESULT), rows=rows)
    return {f"{name} {key}": row[key] for name, row in rows.items() for key in ("seconds", "peak_mb")}


def _row(job: Job, is_wanted: bool) -> dict[str, Any] | None:
    """Return a row that is kept, or that is measured now; None for one that is not wanted or cannot be measured."""
    kept = FOLDER / f"{_file_name(job.name)}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    if not is_wanted:
        return None
    package = PACKAGES.get(job.tool, "json")
    dense = _dense_file(job.model)
    if find_spec(package) is None:
        return _skipped(job, f"pip install {package}")
    if job.recipe is None and dense is None:
        return _skipped(job, f"it needs the dense file of '{job.model}, {PTQ}'")
    print(job.name, flush=True)
    row = _measured(job, dense)
    _show(row)
    kept.write_text(json.dumps(row), encoding="utf-8")
    return row


def _skipped(job: Job, reason: str) -> None:
    print(f"{job.name}: skipped, {reason}", file=sys.stderr, flush=True)


def _measured(job: Job, dense: Path | None) -> dict[str, Any]:
    """Return seconds from command to end, peak memory in MB, and what the process prints. Exits if it fails."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    out = FOLDER / _file_name(job.name)
    for folder in (out, out.with_name(f"{out.name}.stages")):
        shutil.rmtree(folder, ignore_errors=True)
    described = json.dumps(asdict(job) | {"timm": MODELS.get(job.model, ""), "dense": str(dense)})
    command = [sys.executable, str(Path(__file__).with_name("duration_child.py")), described, str(out)]
    environment = {**os.environ, CACHE: str(FOLDER / "cache")}
    with tempfile.TemporaryFile("w+") as output:
        start = perf_counter()
        process = subprocess.Popen(command, stdout=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"error: '{job.name}' ended with exit code {process.returncode}")
        output.seek(0)
        printed = output.read().strip().splitlines()[-1]
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": usage.ru_maxrss / 1e3, **json.loads(printed)}


def _show(row: dict[str, Any]) -> None:
    """Print the row and a line for each phase."""
    print(f"  {row['seconds']:.1f} s, {row['cpu_seconds']:.1f} s of the processor, {row['peak_mb']:.0f} MB", flush=True)
    for part in ("stages", "phases"):
        for name, seconds in row.get(part, {}).items():
            print(f"    {seconds:8.1f} s  {name}", flush=True)
    if "tool_seconds" in row:
        print(f"    {row['tool_seconds']:8.1f} s  without imports and reading of images", flush=True)


def _dense_file(model: str) -> Path | None:
    """Return the ONNX file of the dense model, which the row `PTQ` of the model wrote."""
    stages = FOLDER / f"{_file_name(f'{model}, {PTQ}')}.stages"
    return next(stages.glob("00-dense-*/model.onnx"), None)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())
