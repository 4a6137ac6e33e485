"""Puts measured figures into README.md: the last `vitslim run quickstart`, and the tables in scripts/results.

Use: bash scripts/vitslim run quickstart && .venv/bin/python scripts/update_readme.py
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from vitslim import load_artifact
from vitslim.report import render_terminal

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

import axes  # noqa: E402
import int8  # noqa: E402
import int8_floor  # noqa: E402
import int8_speed  # noqa: E402
import int8_timm  # noqa: E402
import torch_cuda  # noqa: E402
from by_processor import RESULTS, results_of  # noqa: E402

DEPGRAPH, GPUSQ = (RESULTS / f"{name}-deit-tiny.json" for name in ("depgraph", "gpusq"))
GPUSQ_GPU = GPUSQ.with_suffix(".gpu.json")
GPU_MODEL, SYSTOLIC, PUBLISHED = (RESULTS / f"{name}.json" for name in ("gpu-model", "systolic", "published"))


def quickstart() -> str:
    """What a person sees at the end of the README's first command."""
    text = io.StringIO()
    report = load_artifact(ROOT / "runs" / "quickstart").report
    render_terminal(report, Console(file=text, width=118, highlight=False))
    return "\n".join(["```", *(line.rstrip() for line in text.getvalue().strip("\n").splitlines()), "```"])


def coverage() -> str:
    """Summary of the coverage table."""
    s = axes.summary()
    rows = {
        "models: the smallest of each timm module, and 78 of the vision-transformer family": f"{s['models']:.0f}",
        "exported, pruned, verified, trained a step, ONNX file equal to the graph": f"{s['ok']:.0f}",
        "of the 78": f"{s['vit_family_ok']:.0f}",
        "models with at least 99 % of their parameters in tensors that can be cut":
            f"{s['prunable_share_at_least_99_percent']:.1%}",
        "largest change of an output when all axes are permuted, float32": f"{s['permutation_error_float32_max']:.1e}",
        f"the same in float64, for {s['models_float64']:.0f} models that blow rounding up":
            f"{s['permutation_error_float64_max']:.1e}",
        "parameters left after halving every axis, median; between 20 % and 60 % in":
            f"{s['params_kept_median']:.1%}; {s['params_kept_20_to_60_percent']:.1%}",
        "seconds to infer the axes, decide and cut, median; most":
            f"{s['infer_and_prune_s_median']:.2f}; {s['infer_and_prune_s_max']:.2f}",
        f"time of Torch-Pruning over vitslim's on the {s['peer_ok']:.0f} models that both prune, median; least":
            f"{s['peer_time_ratio_median']:.1f}; {s['peer_time_ratio_min']:.1f}",
    }  # fmt: skip
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def importances() -> str:
    """DeiT-Tiny, by importance: agreement with the dense model and divergence from it."""
    return "\n".join(
        [
            "| share of MACs | importance | parameters | agreement, KL after the cut | after distillation |",
            "|---|---|---|---|---|",
            *_importance_rows(json.loads(DEPGRAPH.read_text(encoding="utf-8"))["rows"]),
        ]
    )


def _importance_rows(rows: list[dict[str, float]]) -> Iterator[str]:
    for row in rows:
        if "importance" in row:
            figures = (f"{row[f'{p}_agreement']:.1%}, {row[f'{p}_kl']:.2f}" for p in ("pruned", "distilled"))
            yield f"| {row['share']} | {row['importance']} | {row['params'] / 1e6:.2f} M | {' | '.join(figures)} |"


def quantized() -> str:
    """DeiT-Tiny quantized by vitslim and by other tools, on every processor."""
    head = "speed-up, batch 1 | batch 8 | agreement, 500 classes / val | SQNR | top-1, val | MB"
    tables = []
    for found in results_of(int8.RESULT):
        lines = [f"| {found['environment']['device']} | {head} |", "|---|---|---|---|---|---|---|"]
        for name, row in found["rows"].items():
            speed = f"{row['speedup_b1']:.2f} | {row['speedup_b8']:.2f}"
            lines.append(f"| {name} | {speed} | {_fidelity(row)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def larger() -> str:
    """Speed-ups of larger models at batch 1 / 8, on every processor."""
    models = dict(zip(("DeiT-S", "Swin-T", "ViT-B"), int8_speed.MODELS, strict=True))
    tables = []
    for found in results_of(int8_speed.RESULT):
        rows = found["rows"]
        lines = [f"| {found['environment']['device']} | {' | '.join(models)} |", "|---|---|---|---|"]
        for name in dict.fromkeys(key.partition(" ")[2] for key in rows):
            cells = (_both_batches(rows.get(f"{model} {name}")) for model in models.values())
            lines.append(f"| {name} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _both_batches(row: dict[str, float] | None) -> str:
    return f"{row['speedup_b1']:.2f} / {row['speedup_b8']:.2f}" if row else ""


def distances() -> str:
    """Operators of the INT8 DeiT-Tiny and the least that they could take."""
    head = "| class of operators | number | FP32, ms | vitslim auto, ms | floor, ms |"
    return "\n".join([head, "|---|---|---|---|---|", *int8_floor.table()])


def architectures() -> str:
    """INT8 of timm's architectures, and what went wrong where it did."""
    s, failed = int8_timm.summary(), int8_timm.failures()
    rows = {
        "models measured": f"{s['models']:.0f} of {axes.summary()['models']:.0f}",
        "INT8 file runs in ONNX Runtime, in batches of 1 and of 7": f"{s['models_done']:.0f}",
        "of the vision-transformer family": f"{s['vit_family_done']:.0f} of {s['vit_family']:.0f}",
        "every linear layer whose input has codes is computed in integers": f"{s['every_linear_fused']:.0f}",
        "float weights over the INT8 file, median": f"{s['size_ratio_median']:.2f}",
        "agreement with the float model on 8 images, median": f"{s['agreement_median']:.1%}",
        "SQNR, median; least": f"{s['sqnr_db_median']:.1f} dB; {s['sqnr_db_min']:.1f} dB",
        **{f"not done: {model}": reason for model, reason in failed.items()},
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def sparse(path: Path) -> str:
    """DeiT-Tiny by GPUSQ, step by step."""
    lines = [
        "| | agreement on 500 classes | on val | top-1 | SQNR | bytes on a device | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in json.loads(path.read_text(encoding="utf-8"))["rows"].items():
        shares = " | ".join(f"{row[key]:.1%}" for key in ("agreement_samples", "agreement_val", "top1_samples"))
        sizes = f"{row['sqnr_db_samples']:.1f} dB | {row['device_mb']:.2f} MB | {row['seconds']:.0f}"
        lines.append(f"| {name} | {shares} | {sizes} |")
    return "\n".join(lines)


def _fidelity(row: dict[str, float]) -> str:
    """Empty for a file that is in the table already, on another runtime."""
    if "mb" not in row:
        return " | | | "
    close = " | "
    if "sqnr_db" in row:
        close = f"{row['agreement']:.1%} / {row['agreement_val']:.1%} | {row['sqnr_db']:.1f} dB"
    return f"{close} | {row['top1_val']:.1%} | {row['mb']:.2f}"


def gpu_errors() -> str:
    """Errors of the tensor-core model on unseen products, beside the plain roofline and the noise of the table."""
    figures = json.loads(GPU_MODEL.read_text(encoding="utf-8"))["figures"]
    kinds = ["FP16 dense", "BF16 dense", "INT8 dense", "FP16 2:4", "BF16 2:4", "INT8 2:4", "pooled"]
    lines = ["| products | sim:a100: median, mean, 90th percentile | plain roofline |", "|---|---|---|"]
    lines += [
        f"| {kind} | {_errors(figures, 'model', kind)} | {_errors(figures, 'roofline', kind)} |" for kind in kinds
    ]
    lines.append(f"| noise: FP16 against BF16 times | {_errors(figures, 'noise', 'FP16 against BF16')} | |")
    return "\n".join(lines)


def _errors(figures: dict[str, float], model: str, kind: str) -> str:
    return ", ".join(f"{100 * figures[f'{model}, {kind}, {key}']:.1f} %" for key in ("median", "mean", "p90"))


def on_a_gpu() -> str:
    """Whole models and single products on a GPU, beside dense FP16."""
    found = json.loads(torch_cuda.RESULT.read_text(encoding="utf-8"))
    rows, others = found["rows"], torch_cuda.VARIANTS[1:]
    device = found["environment"]["device"].partition(" with ")[2]
    lines = [f"| {device} | FP16 | {' | '.join(others)} |", "|---|---|---|---|---|"]
    for model in torch_cuda.MODELS:
        for batch in torch_cuda.BATCHES:
            faster = " | ".join(f"{rows[f'{model} {name}'][f'speedup_b{batch}']:.2f}x" for name in others)
            lines.append(f"| {model}, batch {batch} | {rows[f'{model} FP16'][f'ms_b{batch}']:.2f} ms | {faster} |")
    by_shape: dict[tuple[int, int, int], list[float]] = {}
    for one in found["gemms"]:
        by_shape.setdefault((one["m"], one["n"], one["k"]), []).append(one["us"])
    for (m, n, k), (dense, *rest) in by_shape.items():
        lines.append(
            f"| product {m} x {k} x {n} | {dense:.1f} µs | {' | '.join(f'{dense / us:.2f}x' for us in rest)} |"
        )
    return "\n".join(lines)


def scalesim() -> str:
    """SCALE-Sim and the closed form on the same products."""
    figures = json.loads(SYSTOLIC.read_text(encoding="utf-8"))["figures"]
    arrays = [name.removesuffix(", ratio") for name in figures if name.endswith(", ratio")]
    lines = ["| array | SCALE-Sim 3.0.0 | closed form | times faster |", "|---|---|---|---|"]
    for array in arrays:
        theirs, ours, ratio = (figures[f"{array}, {key}"] for key in ("SCALE-Sim s", "closed form s", "ratio"))
        lines.append(f"| {array} | {theirs:.1f} s | {1e6 * ours:.0f} µs | {ratio:,.0f} |")
    return "\n".join(lines)


def whole_models() -> str:
    """Published and simulated ratios in columns of their own."""
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))["rows"]
    lines = ["| | published | simulated | why they differ |", "|---|---|---|---|"]
    lines += [f"| {r['name']} | {r['published']:.2f}x | {r['simulated']:.2f}x | {r['why']} |" for r in rows]
    return "\n".join(lines)


BLOCKS = {
    "quickstart": (ROOT / "runs" / "quickstart", quickstart),
    "axes": (axes.TABLE, coverage),
    "depgraph": (DEPGRAPH, importances),
    "int8": (RESULTS, quantized),
    "int8-speed": (RESULTS, larger),
    "int8-floor": (RESULTS, distances),
    "int8-timm": (int8_timm.TABLE, architectures),
    "gpusq": (GPUSQ, lambda: sparse(GPUSQ)),
    "gpusq-gpu": (GPUSQ_GPU, lambda: sparse(GPUSQ_GPU)),
    "torch-cuda": (torch_cuda.RESULT, on_a_gpu),
    "gpu-model": (GPU_MODEL, gpu_errors),
    "systolic": (SYSTOLIC, scalesim),
    "published": (PUBLISHED, whole_models),
}
"""Name of a block in the README to where its figures come from and what makes the text."""


def main() -> None:
    for name, (source, text) in BLOCKS.items():
        if not source.exists():
            print(f"README.md: {name} stays as it is, there is no {source.relative_to(ROOT)}")
            continue
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = README.read_text(encoding="utf-8").split(start)
        after = rest.split(end)[1]
        README.write_text(f"{before}{start}\n\n{text()}\n\n{end}{after}", encoding="utf-8")
        print(f"README.md: {name} from {source.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
