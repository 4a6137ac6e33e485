"""Coverage of timm: one row for each model in scripts/results/axes-timm-VERSION.csv, written as soon as it is known.

A run that was interrupted goes on where it stopped; delete the table to begin anew. Where Torch-Pruning is installed
(`uv pip install torch-pruning`) it halves the same model right afterwards, for the time that takes.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from typing import Any

import timm
from rich.progress import track
from timm_models import smallest_models, vit_family

RESULTS = Path(__file__).resolve().parents[1] / "results"
TABLE = RESULTS / f"axes-timm-{timm.__version__}.csv"
MODELS = RESULTS / f"smallest-timm-{timm.__version__}.csv"

COLUMNS = (
    "model", "module", "vit_family", "classifier_added", "stage", "error", "params_before", "params_after", "axes",
    "prunable_axes", "cut_axes", "prunable_share", "unknown_ops", "permutation_error", "permutation_dtype", "holds",
    "finite_gradients", "onnx_relative_error", "trace_s", "infer_s", "prune_s", "peer_ok", "peer_s",
    "peer_params_after", "peer_error",
)  # fmt: skip
LIMIT_S = 900

ONNX_TOLERANCE = 1e-4


def run() -> dict[str, float]:
    """Fill the table and sum it up."""
    RESULTS.mkdir(exist_ok=True)
    models = _models()
    done = {row["model"] for row in read_rows()} if TABLE.exists() else set()
    if not done:
        TABLE.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    todo = [model for model in models if model not in done]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = as_completed([pool.submit(_row, model) for model in todo])
        for row in track((future.result() for future in found), "models", total=len(todo)):
            family = row["model"] in vit_family()
            _append({**row, "module": models[row["model"]], "vit_family": family})
    return summary()


def _models() -> dict[str, str]:
    """Model to module: the smallest of each module and the vision-transformer family."""
    by_module = {name: module for module, name in smallest_models(MODELS).items()}
    return by_module | {name: by_module.get(name, "") for name in vit_family()}


def _row(model: str) -> dict[str, Any]:
    """One model by vitslim and, right after it on the same core, by Torch-Pruning, in a process of their own."""
    command = [sys.executable, str(Path(__file__).with_name("axes_model.py")), model]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False)
        output, fate = run.stdout, f"died with {run.returncode}"
    except subprocess.TimeoutExpired as late:
        output, fate = (late.stdout or b"").decode(), f"not finished after {LIMIT_S} s"
    row: dict[str, Any] = {"model": model, "error": fate}
    for line in output.splitlines():
        row |= json.loads(line) if line.startswith("{") else {}
    return row


def _append(row: dict[str, Any]) -> None:
    with TABLE.open("a", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, COLUMNS, extrasaction="ignore").writerow(
            {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        )


def read_rows() -> list[dict[str, str]]:
    """The table as it stands."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def summary() -> dict[str, float]:
    """What the table says, as the README tells it."""
    rows = read_rows()
    done = [row for row in rows if row["stage"] == "done"]
    family = [row for row in rows if row["vit_family"] == "True"]
    kept = [float(row["params_after"]) / float(row["params_before"]) for row in done]
    shares = [float(row["prunable_share"]) for row in done]
    seconds = [float(row["prune_s"]) for row in done]
    both = [float(row["peer_s"]) / float(row["prune_s"]) for row in done if row["peer_ok"] == "True"]
    return {
        "models": len(rows),
        "models_done": len(done),
        "vit_family": len(family),
        "vit_family_ok": sum(map(_is_right, family)),
        "ok": sum(map(_is_right, done)),
        "permutation_error_float32_max": max(_errors(done, "float32"), default=0.0),
        "permutation_error_float64_max": max(_errors(done, "float64"), default=0.0),
        "models_float64": float(sum(row["permutation_dtype"] == "float64" for row in done)),
        "onnx_relative_error_max": max(float(row["onnx_relative_error"]) for row in done),
        "prunable_share_at_least_99_percent": sum(share >= 0.99 for share in shares) / len(done),
        "params_kept_median": median(kept),
        "params_kept_20_to_60_percent": sum(0.2 <= share <= 0.6 for share in kept) / len(done),
        "infer_and_prune_s_median": median(seconds),
        "infer_and_prune_s_max": max(seconds),
        "peer_ok": float(len(both)),
        "peer_time_ratio_median": median(both) if both else 0.0,
        "peer_time_ratio_min": min(both, default=0.0),
    }


def _is_right(row: dict[str, str]) -> bool:
    if row["stage"] != "done":
        return False
    onnx = float(row["onnx_relative_error"]) <= ONNX_TOLERANCE
    return onnx and row["holds"] == "True" and row["finite_gradients"] == "True"


def _errors(rows: list[dict[str, str]], dtype: str) -> Iterator[float]:
    return (float(row["permutation_error"]) for row in rows if row["permutation_dtype"] == dtype)
