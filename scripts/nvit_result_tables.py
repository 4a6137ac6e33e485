"""Markdown tables of latency-aware pruning, from files of scripts/results."""

from __future__ import annotations

from typing import Any

from result_tables import by_processor, device, load, points, table

RESULT, TABLES = "nvit-deit-tiny.json", "nvit-tables"
SMALLEST = "smallest_share"


def latency_tables() -> str:
    """Return the errors of latency tables on each kind of processor."""
    head = ("dense, ms", "median error", "worst", "cross-validated median", "cross-validated worst")
    keys = ("median_error", "worst_error", "cross_validated_median", "cross_validated_worst")
    return "\n\n".join(
        table((device(found), *head), (
            (name.removeprefix("table "), f"{row['dense_ms']:.2f}", *(f"{row[key]:.1%}" for key in keys))
            for name, row in found["rows"].items()
        ))
        for found in by_processor(TABLES)
    )  # fmt: skip


def trained() -> str:
    """Return accuracy at equal measured latency after the same epochs, a table for each task."""
    rows: dict[str, dict[str, Any]] = load(RESULT)["trained"]
    tasks = dict.fromkeys(_task(name) for name in rows)
    return "\n\n".join(_trained(task, {n: row for n, row in rows.items() if _task(n) == task}) for task in tasks)


def _task(name: str) -> str:
    """Return the data set and the precision of a row."""
    return " ".join(name.split()[:2])


def _trained(task: str, rows: dict[str, dict[str, Any]]) -> str:
    first = next(iter(rows)).removeprefix(f"{task} ").rpartition(" ")[0]
    compared = f"top-1 over {first}, points (95 % CI)"
    head = (f"{task}: method, share", "measured latency", "MACs", "top-1, val", compared, "agreement, val")
    return table(head, (
        (name.removeprefix(f"{task} "), f"{row['measured_share']:.2f}x", f"{row['macs_ratio']:.2f}x",
         f"{row['top1_val']:.1%}", points(row, "top1_over_first_val"), f"{row['agreement_val']:.1%}")
        for name, row in rows.items()
    ))  # fmt: skip


def free() -> str:
    """Return agreement without training by share of the latency, then the smallest share that keeps 90 %."""
    rows: dict[str, dict[str, Any]] = load(RESULT)["free"]
    curve = {name: row for name, row in rows.items() if SMALLEST not in row}
    first = next(iter(curve), "").rpartition(" ")[0]
    head = ("method, share of the latency", "MACs", "agreement, 500 classes", f"over {first}, points (95 % CI)",
            "agreement, val", f"over {first}, points (95 % CI)", "seconds")  # fmt: skip
    agreements = table(head, (
        (name, f"{row['macs_ratio']:.2f}x", f"{row['agreement_samples']:.1%}",
         points(row, "agreement_over_first_samples"), f"{row['agreement_val']:.1%}",
         points(row, "agreement_over_first_val"), f"{row['seconds']:.0f}")
        for name, row in curve.items()
    ))  # fmt: skip
    smallest = {name: row[SMALLEST] for name, row in rows.items() if SMALLEST in row}
    shares = table(("method", "smallest share"), ((name, f"{share:g}") for name, share in smallest.items()))
    return f"{agreements}\n\n{shares}" if smallest else agreements
