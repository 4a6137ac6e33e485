"""INT8 of every timm model of the coverage table: one row for each in scripts/results/int8-timm-VERSION.csv.

Weights are random where timm ships none with its package, images are digits: what is shown is that the file runs in
ONNX Runtime with any batch size, what is fused, and how close it stays. Resumable; delete the table to begin anew.
"""

from __future__ import annotations

from statistics import median

from timm_table import fill_table, read_rows, table_of

TABLE = table_of("int8")
COLUMNS = (
    "model", "module", "vit_family", "stage", "error", "linears", "linears_fused", "broken", "first_broken", "layers",
    "layers_quantized", "mb_float", "mb_int8", "batches", "agreement", "sqnr_db", "seconds",
)  # fmt: skip


def run() -> dict[str, float]:
    """Fill the table and sum it up."""
    fill_table(TABLE, COLUMNS, "int8_timm_model.py")
    return summary()


def summary() -> dict[str, float]:
    """What the table says, as the README tells it."""
    rows = read_rows(TABLE)
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


def failures() -> dict[str, str]:
    """Models without a file that runs, with the reason."""
    return {row["model"]: row["error"].partition("\n")[0] for row in read_rows(TABLE) if row["stage"] != "done"}
