"""Summaries of the benchmarks with one row for each timm model. Imports neither timm nor torch."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

Row = dict[str, str]

ONNX_TOLERANCE = 1e-4
"""Largest relative difference between the outputs of the ONNX file and the graph."""


def axes_summary(rows: list[Row]) -> dict[str, float]:
    """Return the summary of `axes`, by the name of each figure."""
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


def _is_right(row: Row) -> bool:
    if row["stage"] != "done":
        return False
    onnx = float(row["onnx_relative_error"]) <= ONNX_TOLERANCE
    return onnx and row["holds"] == "True" and row["finite_gradients"] == "True"


def _errors(rows: list[Row], dtype: str) -> Iterator[float]:
    return (float(row["permutation_error"]) for row in rows if row["permutation_dtype"] == dtype)


def int8_summary(rows: list[Row]) -> dict[str, float]:
    """Return the summary of `int8-timm`, by the name of each figure."""
    done = [row for row in rows if row["stage"] == "done"]
    family = [row for row in rows if row["vit_family"] == "True"]
    return {
        "models": len(rows),
        "models_done": len(done),
        "vit_family": len(family),
        "vit_family_done": sum(row["stage"] == "done" for row in family),
        "every_linear_fused": sum(row["linears"] == row["linears_fused"] for row in done),
        "size_ratio_median": median(float(row["mb_float"]) / float(row["mb_int8"]) for row in done),
        "agreement_median": median(float(row["agreement"]) for row in done),
        "sqnr_db_median": median(float(row["sqnr_db"]) for row in done),
        "sqnr_db_min": min(float(row["sqnr_db"]) for row in done),
    }
