"""The results table of README.md: the main results and their baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from result_tables import axes_summary, by_processor, device, load, read_rows, table

INT8_ROWS = ("vitslim INT8, placement: auto", "ORT quantize_dynamic", "vitslim W4A8, group size 16")
SPARSE_ROW = "2:4, K-FAC, distilled, INT8"
NVIT_ROWS = ("nvit eta 0 in steps", "global")
"""The method of the recipe `nvit-cpu`, and the best one that is not NViT."""
LARGER_ROWS = ("vitslim INT8, static", "ORT quantize_dynamic")


def headline_table() -> str:
    """Return the table in Markdown."""
    return table(("", "vitslim", "baseline"), _rows())


def _rows() -> Iterator[Sequence[str]]:
    int8 = by_processor("int8-deit-tiny")[0]
    rows = int8["rows"]
    auto, dynamic, int4 = (rows[name] for name in INT8_ROWS)
    yield (f"INT8 DeiT-Tiny, {device(int8)}, 1 thread", _int8(auto, rows["FP32"]),
           f"{_int8(dynamic, rows['FP32'])} (ORT quantize_dynamic)")  # fmt: skip
    yield "W4A8 DeiT-Tiny, group size 16", _int8(int4, rows["FP32"]), "not available in ORT"
    larger_rows = by_processor("int8-speed")[0]["rows"]
    models = ("deit_small_patch16_224", "vit_base_patch16_224")
    speedups = ([larger_rows[f"{model} {form}"]["speedup_b1"] for model in models] for form in LARGER_ROWS)
    yield "INT8 DeiT-S, ViT-B", *(f"{small:.2f}x, {base:.2f}x speedup" for small, base in speedups)
    found = {(row["share"], row["importance"]): row for row in load("depgraph-deit-tiny.json")["rows"]
             if "importance" in row}  # fmt: skip
    hessian, peer = found[0.7, "hessian"], found[0.7, "torch-pruning taylor"]
    yield ("DeiT-Tiny pruned to 70 % of its MACs, 30 steps", f"{hessian['distilled_agreement']:.1%} agreement",
           f"{peer['distilled_agreement']:.1%} (Torch-Pruning)")  # fmt: skip
    labeled = load("gpusq-labels.json")["rows"]
    sparse = labeled[SPARSE_ROW]
    smaller = labeled["dense"]["device_mb"] / sparse["device_mb"]
    yield ("2:4 and INT8 DeiT-Tiny, 5 epochs on Caltech-101",
           f"{sparse['top1_val']:.1%} top-1, {smaller:.1f}x smaller in 2:4 format",
           f"{labeled['dense']['top1_val']:.1%} (dense)")  # fmt: skip
    pruned = load("nvit-deit-tiny.json")["trained"]
    nvit, ranked = (pruned[f"caltech int8 {method} 0.75"] for method in NVIT_ROWS)
    yield (f"DeiT-Tiny at {nvit['share']:.0%} of its INT8 latency, 2 epochs on Caltech-101",
           f"{nvit['top1_val']:.1%} top-1 (`nvit-cpu`)", f"{ranked['top1_val']:.1%} (global Taylor)")  # fmt: skip
    trained = load("tps-trained.json")["rows"]
    etps, evit = (trained[f"caltech {method} 0.3"] for method in ("etps", "evit"))
    yield (f"DeiT-Tiny with {etps['macs_ratio']:.0%} of its MACs, 3 epochs on Caltech-101",
           f"{etps['top1_val']:.1%} top-1 (eTPS)", f"{evit['top1_val']:.1%} (EViT)")  # fmt: skip
    s, figures = axes_summary(read_rows("axes-timm-*.csv")), load("gpu-model.json")["figures"]
    yield "timm models that export, prune, verify and train", f"{s['ok']:.0f} of {s['models']:.0f}", ""
    yield ("median error of simulated A100 GEMM latency", f"{figures['model, pooled, median']:.1%}",
           f"{figures['roofline, pooled, median']:.1%} (roofline)")  # fmt: skip


def _int8(row: dict[str, float], dense: dict[str, float]) -> str:
    smaller = dense["mb"] / row["mb"]
    return (f"{row['speedup_b1']:.2f}x speedup, {smaller:.1f}x smaller, {row['agreement']:.1%} agreement, "
            f"{row['sqnr_db']:.1f} dB SQNR")  # fmt: skip
