"""The models that a latency table is built from: the dense one and pruned ones, as files of one precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitslim.backends.matmul_times import MatmulTimes
from vitslim.backends.registry import Backend, Measured
from vitslim.data import load_data
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.latency_grid import Precision, Shape
from vitslim.pipeline.bench.operator_fit import random_lengths
from vitslim.pipeline.bench.quantized_model import quantized
from vitslim.progress import Progress
from vitslim.recipe.formats.profiles import ORT_CPU, PORTABLE
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Ptq
from vitslim.stages.export.onnx_export import export_onnx

KINDS = ("embed", "heads", "qk", "v", "mlp", "other")
"""Kinds of axes that are pruned at random."""
SECONDS = 3.0
"""Time for each model on a measured backend."""


@dataclass(frozen=True)
class Timing:
    """Writes and times whole models for a table."""

    backend: Backend
    batch: int
    threads: int
    precision: Precision
    folder: Path
    """For the files of the models; `dense.onnx` is the dense one."""
    progress: Progress

    @property
    def dense(self) -> Path:
        """The file of the dense model."""
        return self.folder / "dense.onnx"

    def write(self, graph: ModelGraph, path: Path) -> None:
        """Write a float graph, quantized if the precision is int8. Ranges come from the digits of scikit-learn.

        Measured backends get the form that ONNX Runtime runs fastest.
        """
        if self.precision == "float32":
            export_onnx(graph, path)
            return
        images = load_data(Data(kind="digits", calibration=8), graph.source, 0).calibration
        int8 = quantized(graph, images, 0, Ptq(reduce_range=False, smooth=False, activation_scaling="none"))
        export_onnx(int8, path, ORT_CPU if isinstance(self.backend, Measured) else PORTABLE)

    def matmul_times(self, shapes: Sequence[Shape]) -> MatmulTimes:
        """Return the latencies of single matmuls and of the dense model."""
        if isinstance(self.backend, Measured):
            return self.backend.matmul_times(
                shapes, self.dense, self.batch, self.threads, self.precision, self.progress
            )
        return self.backend.matmul_times(shapes, self.dense, self.batch, self.precision)

    def shares(self, graphs: Mapping[str, ModelGraph]) -> dict[str, float]:
        """Write graphs, and return their latencies over that of the dense model, timed interleaved with it."""
        files = {"dense": self.dense}
        for name, graph in self.progress.track(graphs.items(), "exporting models"):
            files[name] = self.folder / f"{name}.onnx"
            self.write(graph, files[name])
        if isinstance(self.backend, Measured):
            found = self.backend.measure(files, "dense", [self.batch], [self.threads], SECONDS, self.progress)
            return {name: 1 / (found[name][0].speedup or 1.0) for name in graphs}
        ms = {name: self.backend.estimate(path, self.batch).latency_ms for name, path in files.items()}
        return {name: ms[name] / ms["dense"] for name in graphs}


def pruned_models(graph: ModelGraph, dense: ModelSketch, count: int, seed: int = 0) -> list[ModelGraph]:
    """Return models with random lengths of all prunable axes; weights have no effect on latency."""
    generator = np.random.default_rng(seed)
    axes = [axis for axis, kind in dense.kinds.items() if kind in KINDS and axis not in dense.frozen]
    found = []
    for _ in range(count if axes else 0):
        lengths = random_lengths(dense, axes, generator)
        found.append(slice_axes(graph, {axis: range(length) for axis, length in lengths.items()}))
    return found
