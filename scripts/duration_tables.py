"""Markdown tables of the durations that `scripts/bench time` measures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from result_tables import by_processor, table

GROWTH = "growth of "
GROWTH_STAGE = "01-quantize"


def durations() -> str:
    """Return the tables of each kind of processor: seconds by stage and memory, and growth with the work."""
    results = [result["rows"] for result in by_processor("time")]
    return "\n\n".join(part for rows in results for part in (_steps(rows), _growth(rows)))


def _steps(rows: dict[str, Any]) -> str:
    head = ("", "seconds", "of which", "processor seconds", "peak memory")
    return table(head, (
        (name, f"{row['seconds']:.0f}", _parts(row), f"{row['cpu_seconds']:.0f}", f"{row['peak_mb'] / 1e3:.1f} GB")
        for name, row in rows.items() if not name.startswith(GROWTH)
    ))  # fmt: skip


def _parts(row: dict[str, Any]) -> str:
    """Return the seconds of each stage, and of all evaluations; of another tool those without imports and images."""
    if "tool_seconds" in row:
        return f"tool {row['tool_seconds']:.0f}"
    seconds = {name: stage_alone(row, name) for name in row["stages"]}
    seconds["evaluation"] = sum(row["stages"].values()) - sum(seconds.values())
    return ", ".join(f"{name} {one:.0f}" for name, one in seconds.items())


def stage_alone(row: dict[str, Any], stage: str) -> float:
    """Return the seconds of a stage and of writing its file, without the evaluation of the file."""
    judging = sum(seconds for label, seconds in row["phases"].items() if label.startswith(f"{stage}: accuracy on"))
    return float(row["stages"][stage] - judging)


def _growth(rows: dict[str, Any]) -> str:
    return table(("quantity", "value", "PTQ, seconds", "work", "time over linear"), _growth_rows(rows))


def _growth_rows(rows: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield rows that compare each value with the first of its quantity: growth of time over growth of work."""
    first: dict[str, tuple[float, float]] = {}
    for name, row in rows.items():
        if not name.startswith(GROWTH):
            continue
        quantity, _, value = name.removeprefix(GROWTH).partition(": ")
        seconds, work = stage_alone(row, GROWTH_STAGE), row["work"]
        base, base_work = first.setdefault(quantity, (seconds, work))
        growth = work / base_work
        yield quantity, value, f"{seconds:.1f}", f"{growth:.2f}x", f"{seconds / base / growth:.2f}x"
