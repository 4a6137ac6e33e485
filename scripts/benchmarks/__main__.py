"""List the benchmarks, or run one and print its figures; `--json FILE` writes them with the environment."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vitslim.backends.environment import environment
from vitslim.errors import closest

BENCHMARKS = {
    "axes": "Traces, prunes, trains for one step and exports every timm architecture; continues after an interruption.",
    "concurrency": "Two processes on one cache, 100 rounds with random kills: nothing lost or repeated; continues.",
    "depgraph": "Compares the importance scores of DepGraph and Torch-Pruning on DeiT-Tiny at 85, 70 and 50 % of MACs.",
    "fact": "Accuracy, cycles and energy of DeiT-Tiny on settings of sim:fact; ablation and sensitivity.",
    "full-disk": "Runs quickstart on a disk that is full at one write after the other; needs the right to mount.",
    "gpu-model": "Computes the error of the simulated A100 and of a roofline model on held-out GEMMs.",
    "gpusq": "Measures the steps of GPUSQ on DeiT-Tiny: 2:4 sparsity, distillation, INT8 and INT4 (half an hour).",
    "gpusq-labels": "GPUSQ with labels on a fine-tuned DeiT-Tiny: 2:4, distillation, INT8, W4A8 (an hour); continues.",
    "int8": "Compares latency, size, agreement and top-1 of INT8 and INT4 DeiT-Tiny with other tools.",
    "int8-floor": "Compares the latency of each class of operators of INT8 DeiT-Tiny with its lower bound.",
    "int8-speed": "Compares the latency of INT8 DeiT-S, Swin-T and ViT-B with quantize_dynamic.",
    "int8-timm": "Quantizes every timm architecture and runs its file; continues after an interruption.",
    "kills": "Kills `vitslim run quickstart` at 50 random moments and resumes it: equal weights, time lost; continues.",
    "large-index": "Seconds and memory to the first of a million images, as files and as shards (ten minutes).",
    "memory": "Peak memory and seconds of INT8 ViT-B and ViT-L and of 2:4 ViT-L, random weights (half an hour).",
    "nipq": "Compares learned bits (NIPQ) with LSQ on three tasks, and FP8 with INT8; continues after an interruption.",
    "noise": "Measures a file against itself, and against itself slowed down by 5 %, and checks the intervals.",
    "nvit": "Compares latency-aware pruning methods on DeiT-Tiny at equal measured latency (six hours); continues.",
    "own-data": "Dense accuracy of a fine-tuned DeiT-Tiny by the form of its checkpoint; seconds to check its images.",
    "published": "Compares published speedups of whole models with those of sim:a100.",
    "quickstart": "Runs `vitslim run quickstart` from scratch and prints seconds, accuracy, size and speedup.",
    "spatten": "Accuracy, cycles and energy of DeiT-Tiny on settings of sim:spatten; GPT-2 workloads.",
    "startup": "Times `vitslim --help` and `plan quickstart --no-trace`, and checks whether they import torch.",
    "systolic": "Compares the compute cycles of SCALE-Sim and of sim:systolic on the GEMMs of DeiT-Tiny.",
    "token-models": "Compares ONNX Runtime and PyTorch on models with squeezed tokens, or prints why one is refused.",
    "torch-cuda": "Measures FP16, INT8 and 2:4 of DeiT-S, DeiT-B and ViT-L on an NVIDIA GPU.",
    "time": "Times the steps of vitslim and of other tools, their memory, and how the time grows; continues.",
    "tps": "Compares methods of token squeezing on DeiT-Tiny: latency, accuracy with and without training (2 hours).",
    "training": "Time and memory of a step of training, distillation, 2:4 and QAT, against a loop by hand (minutes).",
}
"""Benchmark to its description. `run()` of the module with this name returns the figures. Only the chosen module is
imported, because some need packages that others do not."""
MODULES = {"time": "durations"}
"""Benchmark to its module, where that has another name: `time` is one of Python."""


def main() -> int:
    """Run the command line; return 2 for an unknown benchmark."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Run a benchmark.")
    parser.add_argument("name", nargs="?", help="benchmark to run; without it, list all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and environment to FILE")
    parser.add_argument("--only", metavar="TEXT", help="of `time`: measure the rows whose name contains TEXT")
    arguments = parser.parse_args()
    if arguments.name is None:
        _print_table("benchmarks", BENCHMARKS)
        return 0
    if arguments.name not in BENCHMARKS:
        hint = closest(arguments.name, BENCHMARKS)
        print(f"error: got '{arguments.name}', expected a benchmark\nhint: {hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(MODULES.get(arguments.name, arguments.name.replace("-", "_")))
    figures: dict[str, float] = module.run(arguments.only) if arguments.only else module.run()
    _print_table(arguments.name, {name: f"{value:.6g}" for name, value in figures.items()})
    if arguments.json:
        result = {"name": arguments.name, "figures": figures, "environment": environment().model_dump()}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _print_table(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
