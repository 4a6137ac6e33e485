"""INT8 of timm architectures: one row for each model in scripts/results/int8-timm-VERSION.csv.

Weights are random and images are digits. A row shows whether the file runs in ONNX Runtime at any batch size, the
number of fused integer GEMMs, and the fidelity to the float model. An interrupted run continues; delete the table to
start again.
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
