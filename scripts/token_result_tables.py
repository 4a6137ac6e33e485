"""Markdown tables of token squeezing, from files of scripts/results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from result_tables import by_processor, device, load, points, table

FREE, TRAINED, MODELS = "tps-free.json", "tps-trained.json", "token-models.json"
CONTRASTS = ("evit", "prune-only", "dynamicvit", "etps")
"""Methods that others are compared with, image by image, after the same training."""

OPERATORS_OF = ("deit_tiny_patch16_224 FP32", "deit_tiny_patch16_224 INT8")
SMALL_MS = 0.03


def free() -> str:
    """Return accuracy without training at several fractions of the MACs."""
    head = (
        "method, fraction of the MACs", "GMACs", "top-1, val", "change, points (95 % CI)", "agreement, val",
        "top-1, 500 classes", "change, points (95 % CI)", "agreement, 500 classes",
        "agreement over etps, points (95 % CI)", "seconds",
    )  # fmt: skip
    rows = load(FREE)["rows"].items()
    return table(head, ((name, f"{row['gmacs']:.2f}", *_free(row), _seconds(row)) for name, row in rows))


def _free(row: dict[str, Any]) -> Iterator[str]:
    for one in ("val", "samples"):
        yield from (f"{row[f'top1_{one}']:.1%}", points(row, f"top1_change_{one}"), f"{row[f'agreement_{one}']:.1%}")
    yield points(row, "agreement_over_etps_samples")


def _seconds(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.0f}" if "seconds" in row else ""


def trained() -> str:
    """Return accuracy after the same training, a table for each data set, each with its contrasts."""
    rows: dict[str, dict[str, Any]] = load(TRAINED)["rows"]
    tasks = dict.fromkeys(name.split()[0] for name in rows)
    parts = ({name: row for name, row in rows.items() if name.split()[0] == task} for task in tasks)
    return "\n\n".join(text for part in parts for text in (_accuracy(part), _contrasts(part)))


def _accuracy(rows: dict[str, dict[str, Any]]) -> str:
    head = ("data, method, keep rate", "GMACs", "top-1, val", "change, points (95 % CI)", "agreement, val", "seconds")
    return table(head, (
        (name, f"{row['gmacs']:.2f}", f"{row['top1_val']:.1%}", points(row, "top1_change_val"),
         f"{row['agreement_val']:.1%}", _seconds(row))
        for name, row in rows.items()
    ))  # fmt: skip


def _contrasts(rows: dict[str, dict[str, Any]]) -> str:
    head = ("compared", "top-1, val, points (95 % CI)", "agreement, val, points (95 % CI)")

    def found() -> Iterator[Sequence[str]]:
        for name, row in rows.items():
            for second in CONTRASTS:
                if f"top1_over_{second}_val" in row:
                    task, first, rate = name.split()
                    shown = (points(row, f"{key}_over_{second}_val") for key in ("top1", "agreement"))
                    yield (f"{task} {rate}: {first} over {second}", *shown)

    return table(head, found())


def speed() -> str:
    """Return latency of all methods at one keep rate, and the time of each kind of operator."""
    results = by_processor("tps-speed")
    shown = ((found, prefix) for found in results for prefix in OPERATORS_OF)
    operators = (_operators(prefix, found["rows"]) for found, prefix in shown)
    return "\n\n".join((*(_latency(found) for found in results), *operators))


def _latency(found: dict[str, Any]) -> str:
    head = ("MACs, dense over squeezed", "speedup, batch 1", "of the ratio", "speedup, batch 8", "of the ratio")
    return table((device(found), *head), (
        (name, f"{row['macs_ratio']:.2f}x", *_speedups(row)) for name, row in found["rows"].items()
    ))  # fmt: skip


def _operators(prefix: str, rows: dict[str, dict[str, Any]]) -> str:
    """Return milliseconds by kind of operator of the methods on one model; small ones are summed."""
    times = {name.removeprefix(prefix).strip(): row["operators_ms_b1"] for name, row in rows.items()
             if name.startswith(prefix)}  # fmt: skip
    kinds = {kind: max(one.get(kind, 0.0) for one in times.values()) for one in times.values() for kind in one}
    large = sorted((kind for kind, ms in kinds.items() if ms >= SMALL_MS), key=lambda kind: -kinds[kind])

    def cells() -> Iterator[Sequence[str]]:
        for kind in large:
            yield (kind, *(f"{one.get(kind, 0.0):.2f}" for one in times.values()))
        yield ("others", *(f"{sum(one.values()) - sum(one.get(k, 0.0) for k in large):.2f}" for one in times.values()))
        yield ("all", *(f"{sum(one.values()):.2f}" for one in times.values()))

    return table((f"{prefix}, ms at batch 1", *times), cells())


def _speedups(row: dict[str, float]) -> Iterator[str]:
    for batch in (1, 8):
        yield f"{row[f'speedup_b{batch}']:.2f}x"
        yield f"{row[f'efficiency_b{batch}']:.0%}"


def models() -> str:
    """Return the difference between ONNX Runtime and PyTorch on models of several families, or the refusal."""
    head = ("model, method", "MACs of dense", "largest difference of logits")
    return table(head, (
        (name, "", row["refused"]) if "refused" in row
        else (name, f"{row['macs_ratio']:.2f}x", f"{row['max_difference']:.1e}")
        for name, row in load(MODELS)["rows"].items()
    ))  # fmt: skip
