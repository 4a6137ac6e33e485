"""Lists the benchmarks, or runs one and prints its figures; `--json FILE` writes them with the environment."""

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
    "axes": "every timm architecture: axes found, everything halved, verified, trained a step, exported; resumable",
    "depgraph": "DeiT-Tiny on real images at 0.85, 0.7 and 0.5 of its MACs: importances compared, and Torch-Pruning",
    "gpu-model": "errors of the tensor-core model on unseen products, five folds, beside the plain roofline",
    "gpusq": "GPUSQ on the real DeiT-Tiny, step by step from the mask to INT4; resumable, six and a half hours",
    "int8": "INT8 and INT4 of the real DeiT-Tiny beside other tools: speed, size, fidelity, top-1",
    "int8-floor": "time of each class of operators of the INT8 DeiT-Tiny, and the least that this processor could take",
    "int8-speed": "INT8 of DeiT-S, Swin-T and ViT-B beside quantize_dynamic, and DeiT-S made smaller as well: speed",
    "int8-timm": "every timm architecture through INT8: runs with any batch, what is fused, how close; resumable",
    "published": "whole models on sim:a100 beside published speed-ups: 2:4, token schedules, pruned shapes",
    "quickstart": "`vitslim run quickstart` from scratch: seconds, accuracies, and what became smaller and faster",
    "startup": "time of `vitslim --help` and `plan quickstart --no-trace`, best of five, and whether they load torch",
    "systolic": "the six matrix products of DeiT-Tiny by SCALE-Sim and by the closed form: cycles and time",
    "torch-cuda": "DeiT-S, DeiT-B and ViT-L on an NVIDIA GPU: FP16, INT8 and 2:4 beside dense FP16",
}
"""Module of this folder, whose `run()` gives the figures, to what it measures. Loaded one at a time: some need packages
that the others do without."""


def main() -> int:
    """Parse the command line; the exit code is 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Run one of vitslim's benchmarks.")
    parser.add_argument("name", nargs="?", help="benchmark to run; all are listed when left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write name, figures and environment here")
    arguments = parser.parse_args()
    if arguments.name is None:
        _print_table("benchmarks", BENCHMARKS)
        return 0
    if arguments.name not in BENCHMARKS:
        print(f"there is no benchmark '{arguments.name}'\nhint: {closest(arguments.name, BENCHMARKS)}", file=sys.stderr)
        return 2
    figures: dict[str, float] = importlib.import_module(arguments.name.replace("-", "_")).run()
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
