"""Markdown tables of token squeezing. Each function reads files of scripts/results and returns text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from result_tables import by_processor, device, load, table


def untrained() -> str:
    """Return accuracy without training at several fractions of the MACs."""
    head = ("MACs", "method", "top-1, val", "change, points (95 % CI)", "agreement, val", "agreement, 500 classes",
            "agreement over eTPS, points (95 % CI)", "seconds")  # fmt: skip
    rows = load("tps-deit-tiny.json")["free"]
    return table(head, (
        (f"{row['macs_ratio']:.0%}", row.get("method", "dense"), f"{row['top1_val']:.1%}",
         _points(row, "top1_change_val"), f"{row['agreement_val']:.1%}", f"{row['agreement_samples']:.1%}",
         _points(row, "agreement_over_etps_samples"), f"{row['seconds']:.0f}" if "seconds" in row else "")
        for row in rows.values()
    ))  # fmt: skip


def trained() -> str:
    """Return accuracy after the same training of all methods."""
    head = ("images", "keep rate", "method", "MACs", "top-1, val", "agreement, val", "top-1 over EViT", "over pruning",
            "over DynamicViT", "over eTPS", "seconds")  # fmt: skip
    others = ("evit", "prune-only", "dynamicvit", "etps")

    def rows() -> Iterator[Sequence[str]]:
        for name, row in load("tps-deit-tiny.json")["trained"].items():
            task, method, *rate = name.split()
            contrasts = (_points(row, f"top1_over_{other}_val") for other in others)
            yield (task, *(rate or [""]), method, f"{row['macs_ratio']:.0%}", f"{row['top1_val']:.1%}",
                   f"{row['agreement_val']:.1%}", *contrasts,
                   f"{row['seconds']:,.0f}" if "seconds" in row else "")  # fmt: skip

    return table(head, rows())


def _points(row: dict[str, Any], key: str) -> str:
    """Return a difference in points with its interval; an empty cell if the row has none or is the baseline."""
    if key not in row:
        return ""
    mean, low, high = (100 * value for value in row[key])
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def latency() -> str:
    """Return speedups at keep rate 0.7, and as fractions of the ratio of MACs."""

    def rows_of(rows: dict[str, Any]) -> Iterator[Sequence[str]]:
        for name, row in rows.items():
            model, precision, method = name.split()
            cells = (f"{row[f'speedup_b{b}']:.2f}x ({row[f'efficiency_b{b}']:.0%})" for b in (1, 8))
            yield model.split("_patch")[0], precision, method, f"{row['macs_ratio']:.2f}x", *cells

    head = ("precision", "method", "dense MACs over MACs", "speedup, batch 1", "speedup, batch 8")
    return "\n\n".join(table((device(one), *head), rows_of(one["rows"])) for one in by_processor("tps-speed"))


def families() -> str:
    """Return the largest difference between ONNX Runtime and PyTorch for each model, or the reason of a refusal."""
    rows = load("token-models.json")["rows"]
    methods = list(dict.fromkeys(name.split()[1] for name in rows))
    models = dict.fromkeys(name.split()[0] for name in rows)
    cells = ((model, *(_family(rows[f"{model} {method}"]) for method in methods)) for model in models)
    return table(("", *methods), cells)


def _family(row: dict[str, Any]) -> str:
    return f"{row['max_difference']:.0e}" if "max_difference" in row else f"refused: {row['refused']}"
