"""Intervals of speedups: a file against itself, and against itself slowed down by 5 %.

Uses the dense model of quickstart with random weights, 20 measurements each. About two minutes on two idle cores.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from vitslim.backends.measured.interleaved import measure_interleaved
from vitslim.backends.measured.onnxruntime import ONNX_RUNTIME
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe import load_recipe
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.workload.session import OnnxModel

REPEATS, SECONDS = 20, 1.0
SLOWER = 1.05


class SlowedModel(OnnxModel):
    """A model that takes 5 % longer: it waits on the core after each run."""

    def __call__(self, images: Any) -> Any:
        """Run, then keep the core busy for a twentieth of the time that the run took."""
        start = perf_counter()
        logits = super().__call__(images)
        end = start + SLOWER * (perf_counter() - start)
        while perf_counter() < end:
            pass
        return logits


def open_by_name(path: Path, threads: int) -> OnnxModel:
    """Open a file; slowed down if its name says so."""
    return SlowedModel(path, threads) if path.stem == "slower" else OnnxModel(path, threads)


def run() -> dict[str, float]:
    """Return the number of measurements whose interval contains 1, and the number that finds the slow-down."""
    model = load_recipe("quickstart").model
    runtime = replace(ONNX_RUNTIME, open_model=open_by_name)
    with TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("dense", "same", "slower")}
        export_onnx(trace_timm(model.name, model.kwargs), files["dense"])
        for name in ("same", "slower"):
            copyfile(files["dense"], files[name])
        found = [measure_interleaved(runtime, files, "dense", (1,), (1,), SECONDS, Silent()) for _ in range(REPEATS)]
    intervals = {name: [one[name][0].speedup_interval for one in found] for name in ("same", "slower")}
    for name, values in intervals.items():
        print(name, *(f"{low:.3f}-{high:.3f}" for low, high in filter(None, values)))
    same, slower = ([value for value in intervals[name] if value] for name in ("same", "slower"))
    return {
        "measurements": REPEATS,
        "same file: interval contains 1": sum(low <= 1 <= high for low, high in same),
        "slower by 5 %: interval below 1": sum(high < 1 for _, high in slower),
        "same file: mean width of the interval": sum(high - low for low, high in same) / REPEATS,
    }
