"""INT8 of every timm model of the coverage table: one row for each in scripts/results/int8-timm-VERSION.csv.

Weights are random where timm ships none with its package, images are digits: what is shown is that the file runs in
ONNX Runtime with any batch size, what is fused, and how close it stays. Resumable; delete the table to begin anew.
"""

from __future__ import annotations

from timm_summary import int8_summary
from timm_table import fill_table, read_rows, table_of

TABLE = table_of("int8")
COLUMNS = (
    "model", "module", "vit_family", "stage", "error", "linears", "linears_fused", "broken", "first_broken", "layers",
    "layers_quantized", "mb_float", "mb_int8", "batches", "agreement", "sqnr_db", "seconds",
)  # fmt: skip


def run() -> dict[str, float]:
    """Fill the table and return its summary."""
    fill_table(TABLE, COLUMNS, "int8_timm_model.py")
    return int8_summary(read_rows(TABLE))
