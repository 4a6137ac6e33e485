"""Axis inference and pruning of timm architectures: one row for each model in scripts/results/axes-timm-VERSION.csv.

Rows are written as soon as they are known, so an interrupted run continues; delete the table to start again. Where
Torch-Pruning is installed (`uv pip install torch-pruning`), it prunes the same models for comparison.
"""

from __future__ import annotations

from timm_summary import axes_summary
from timm_table import fill_table, read_rows, table_of

TABLE = table_of("axes")

COLUMNS = (
    "model", "module", "vit_family", "classifier_added", "stage", "error", "params_before", "params_after", "axes",
    "prunable_axes", "cut_axes", "prunable_share", "unknown_ops", "permutation_error", "permutation_dtype", "holds",
    "finite_gradients", "onnx_relative_error", "trace_s", "infer_s", "prune_s", "peer_ok", "peer_s",
    "peer_params_after", "peer_error",
)  # fmt: skip


def run() -> dict[str, float]:
    """Fill the table and return its summary."""
    fill_table(TABLE, COLUMNS, "axes_model.py")
    return axes_summary(read_rows(TABLE))
