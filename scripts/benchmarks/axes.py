"""Coverage of timm: one row for each model in scripts/results/axes-timm-VERSION.csv, written as soon as it is known.

A run that was interrupted goes on where it stopped; delete the table to begin anew. Where Torch-Pruning is installed
(`uv pip install torch-pruning`) it halves the same model right afterwards, for the time that takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from timm_table import fill_table, read_rows, table_of

TABLE = table_of("axes")

COLUMNS = (
    "model", "module", "vit_family", "classifier_added", "stage", "error", "params_before", "params_after", "axes",
    "prunable_axes", "cut_axes", "prunable_share", "unknown_ops", "permutation_error", "permutation_dtype", "holds",
    "finite_gradients", "onnx_relative_error", "trace_s", "infer_s", "prune_s", "peer_ok", "peer_s",
    "peer_params_after", "peer_error",
)  # fmt: skip

ONNX_TOLERANCE = 1e-4


def run() -> dict[str, float]:
    """Fill the table and sum it up."""
    fill_table(TABLE, COLUMNS, "axes_model.py")
    return summary()


def summary() -> dict[str, float]:
    """What the table says, as the README tells it."""
    rows = read_rows(TABLE)
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
