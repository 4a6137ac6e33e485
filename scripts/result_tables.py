"""Markdown tables of the measured results in scripts/results. Each function reads files and returns text."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "scripts" / "results"
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

from timm_summary import axes_summary, int8_summary  # noqa: E402

OUTDATED = "outdated"
"""Key of a result file: parts that an earlier version of the code measured. They are not shown. The benchmark
writes the file without this key."""


def load(name: str) -> dict[str, Any]:
    """Return a result file without its outdated parts."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in found.get(OUTDATED, ())}


def by_processor(name: str) -> list[dict[str, Any]]:
    """Return the current results of a benchmark on each kind of processor."""
    found = (load(path.name) for path in sorted(RESULTS.glob(f"{name}.*.json"), reverse=True))
    return [result for result in found if "rows" in result]


def read_rows(pattern: str) -> list[dict[str, str]]:
    """Return the rows of the newest CSV file that a pattern finds."""
    newest = max(RESULTS.glob(pattern), key=lambda path: path.name)
    with newest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def points(row: dict[str, Any], key: str) -> str:
    """Return a difference in points with its interval; an empty cell if the row has none."""
    if key not in row:
        return ""
    mean, low, high = (100 * value for value in row[key])
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def quantized() -> str:
    """Return the table of DeiT-Tiny quantized by vitslim and by other tools."""
    head = ("", "speedup, batch 1", "batch 8", "agreement, 500 classes", "agreement, val", "SQNR", "top-1, val", "MB")
    return _by_device("int8-deit-tiny", head, lambda rows: (
        (name, *(f"{row[f'speedup_b{batch}']:.2f}x" for batch in (1, 8)), *_fidelity(row))
        for name, row in rows.items()
    ))  # fmt: skip


def _by_device(name: str, head: Sequence[str], rows_of: Any) -> str:
    tables = [table((device(found), *head[1:]), rows_of(found["rows"])) for found in by_processor(name)]
    return "\n\n".join(tables)


def device(found: dict[str, Any]) -> str:
    """Return the processor on which a result was measured."""
    return str(found["environment"]["device"])


def _fidelity(row: dict[str, float]) -> tuple[str, ...]:
    """Return agreement, SQNR, top-1 and size; empty cells for a file that another row describes."""
    if "mb" not in row:
        return ("",) * 5
    close = ("", "", "")
    if "sqnr_db" in row:
        close = (f"{row['agreement']:.1%}", f"{row['agreement_val']:.1%}", f"{row['sqnr_db']:.1f} dB")
    return (*close, f"{row['top1_val']:.1%}", f"{row['mb']:.2f}")


def larger() -> str:
    """Return the speedups of larger models at batch 1 and 8."""
    models = {"DeiT-S": "deit_small_patch16_224", "Swin-T": "swin_tiny_patch4_window7_224",
              "ViT-B": "vit_base_patch16_224"}  # fmt: skip

    def rows_of(rows: dict[str, Any]) -> Iterator[Sequence[str]]:
        for name in dict.fromkeys(key.partition(" ")[2] for key in rows):
            found = (rows.get(f"{model} {name}") for model in models.values())
            yield name, *(f"{r['speedup_b1']:.2f}x / {r['speedup_b8']:.2f}x" if r else "" for r in found)

    return _by_device("int8-speed", ("", *models), rows_of)


def floor() -> str:
    """Return the latency of each class of operators of the INT8 DeiT-Tiny, and its lower bound."""
    head = ("", "operators", "FP32, ms", "INT8, ms", "lower bound, ms")

    def rows_of(rows: dict[str, Any]) -> Iterator[Sequence[str]]:
        dense, int8 = rows["FP32"], rows["vitslim INT8, placement: auto"]
        for name, row in sorted(int8.items(), key=lambda item: -item[1]["ms"]):
            before = f"{dense[name]['ms']:.2f}" if name in dense else ""
            yield name, str(row["n"]), before, f"{row['ms']:.2f}", f"{row['floor_ms']:.2f}"

    return _by_device("int8-floor", head, rows_of)


def int8_architectures() -> str:
    """Return the summary of INT8 over timm, with the error of each model without a file."""
    rows = read_rows("int8-timm-*.csv")
    s = int8_summary(rows)
    failed = {row["model"]: row["error"].partition("\n")[0] for row in rows if row["stage"] != "done"}
    cells = {
        "models measured": f"{s['models']:.0f} of {len(read_rows('axes-timm-*.csv'))}",
        "INT8 file runs in ONNX Runtime at batch 1 and 7": f"{s['models_done']:.0f}",
        "of the vision-transformer family": f"{s['vit_family_done']:.0f} of {s['vit_family']:.0f}",
        "every linear layer with quantized input runs as an integer GEMM": f"{s['every_linear_fused']:.0f}",
        "size of the weights over the INT8 file, median": f"{s['size_ratio_median']:.2f}x",
        **{f"no file: {model}": reason for model, reason in failed.items()},
    }
    return table(("", ""), cells.items())


def coverage() -> str:
    """Return the summary of axis inference and pruning over timm."""
    s = axes_summary(read_rows("axes-timm-*.csv"))
    rows = {
        "models: the smallest of each timm module, and the vision-transformer family": f"{s['models']:.0f}",
        "exported, pruned, verified, trained one step, ONNX file equal to the graph": f"{s['ok']:.0f}",
        "of the vision-transformer family": f"{s['vit_family_ok']:.0f} of {s['vit_family']:.0f}",
        "models with at least 99 % of their parameters in prunable tensors":
            f"{s['prunable_share_at_least_99_percent']:.1%}",
        "largest output change when all axes are permuted, float32": f"{s['permutation_error_float32_max']:.1e}",
        f"the same in float64, for {s['models_float64']:.0f} models that amplify rounding errors":
            f"{s['permutation_error_float64_max']:.1e}",
        "parameters left after halving every axis, median": f"{s['params_kept_median']:.1%}",
        "seconds to infer the axes and prune, median; maximum":
            f"{s['infer_and_prune_s_median']:.2f}; {s['infer_and_prune_s_max']:.2f}",
        f"time of Torch-Pruning over vitslim's on the {s['peer_ok']:.0f} models that both prune, median; minimum":
            f"{s['peer_time_ratio_median']:.1f}x; {s['peer_time_ratio_min']:.1f}x",
    }  # fmt: skip
    return table(("", ""), rows.items())


def importances() -> str:
    """Return the agreement and KL divergence of DeiT-Tiny pruned with each importance."""
    head = ("MACs kept", "importance", "parameters", "agreement after pruning", "KL", "agreement after distillation",
            "KL")  # fmt: skip
    rows = (row for row in load("depgraph-deit-tiny.json")["rows"] if "importance" in row)
    return table(head, (
        (f"{row['share']:.0%}", row["importance"], f"{row['params'] / 1e6:.2f} M",
         *(text for phase in ("pruned", "distilled")
           for text in (f"{row[f'{phase}_agreement']:.1%}", f"{row[f'{phase}_kl']:.2f}")))
        for row in rows
    ))  # fmt: skip


def sparse() -> str:
    """Return the steps of GPUSQ on DeiT-Tiny."""
    head = ("", "agreement, 500 classes", "agreement, val", "top-1, 500 classes", "SQNR", "MB on the device", "seconds")
    return table(head, (
        (name, *(f"{row[key]:.1%}" for key in ("agreement_samples", "agreement_val", "top1_samples")),
         f"{row['sqnr_db_samples']:.1f} dB", f"{row['device_mb']:.2f}", f"{row['seconds']:,.0f}")
        for name, row in load("gpusq-deit-tiny.json")["rows"].items()
    ))  # fmt: skip


def sparse_with_labels() -> str:
    """Return the steps of GPUSQ with labels."""
    head = ("", "top-1, val", "change, points (95 % CI)", "agreement, val", "MB on the device", "seconds")

    def cells(row: dict[str, Any]) -> Iterator[str]:
        yield from (f"{row['top1_val']:.1%}", points(row, "top1_change_val"))
        yield f"{row['agreement_val']:.1%}" if "agreement_val" in row else ""
        yield f"{row['device_mb']:.2f}"
        yield f"{row['seconds']:,.0f}" if "seconds" in row else ""

    return table(head, ((name, *cells(row)) for name, row in load("gpusq-labels.json")["rows"].items()))


def gpu_gemms() -> str:
    """Return the speedups over dense FP16 of the GEMMs of DeiT-B on a GPU."""
    found = load("torch-cuda.json")
    by_shape: dict[tuple[int, int, int], list[float]] = {}
    for one in found["gemms"]:
        by_shape.setdefault((one["m"], one["n"], one["k"]), []).append(one["us"])
    head = (f"M x K x N, on {device(found).partition(' with ')[2]}", "FP16", "FP16 2:4", "INT8", "INT8 2:4")
    return table(head, (
        (f"{m} x {k} x {n}", f"{dense:.1f} µs", *(f"{dense / us:.2f}x" for us in rest))
        for (m, n, k), (dense, *rest) in by_shape.items()
    ))  # fmt: skip


def gpu_errors() -> str:
    """Return the errors on held-out GEMMs of the tensor-core model and a roofline model, and the noise of the data."""
    figures = load("gpu-model.json")["figures"]

    def errors(model: str, kind: str) -> str:
        return ", ".join(f"{100 * figures[f'{model}, {kind}, {key}']:.1f} %" for key in ("median", "mean", "p90"))

    kinds = ("FP16 dense", "BF16 dense", "INT8 dense", "FP16 2:4", "BF16 2:4", "INT8 2:4", "pooled")
    rows = [(kind, errors("model", kind), errors("roofline", kind)) for kind in kinds]
    rows.append(("noise: FP16 against BF16 latency", errors("noise", "FP16 against BF16"), ""))
    return table(("GEMMs", "sim:a100: median, mean, 90th percentile", "roofline model"), rows)


def scalesim() -> str:
    """Return cycles and time of SCALE-Sim and of the closed form on the same GEMMs."""
    figures = load("systolic.json")["figures"]
    arrays = (name.removesuffix(", ratio") for name in figures if name.endswith(", ratio"))
    return table(("array", "SCALE-Sim 3.0.0", "closed form", "speedup", "GEMMs with equal cycles"), (
        (array, f"{figures[f'{array}, SCALE-Sim s']:.1f} s", f"{1e6 * figures[f'{array}, closed form s']:.0f} µs",
         f"{figures[f'{array}, ratio']:,.0f}x", f"{figures[f'{array}, equal cycles']:.0f} of 6")
        for array in arrays
    ))  # fmt: skip


def whole_models() -> str:
    """Return published and simulated speedups of whole models, in separate columns."""
    rows = load("published.json")["rows"]
    return table(("", "published", "simulated", "source of the difference"), (
        (row["name"], f"{row['published']:.2f}x", f"{row['simulated']:.2f}x", row["why"]) for row in rows
    ))  # fmt: skip


def measured_on(source: str) -> str:
    """Return a sentence with the processors and the dates of a section's result files."""
    if source.endswith(".csv"):
        return f"Rows: [{source}]({source})."
    found = {path.name: load(path.name) for path in sorted(RESULTS.glob(source), reverse=True)}
    texts = (f"{device(result)}{_date(result)}, [{name}]({name})" for name, result in found.items())
    return f"Run on {'; '.join(texts)}."


def _date(result: dict[str, Any]) -> str:
    return f", {result['date']}" if "date" in result else ""
