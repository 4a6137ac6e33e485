"""The contract of stages. A `stage.py` only wires; the mathematics is in pure functions in other files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from vitslim.data import DataModule
from vitslim.errors import Problem
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.outputs import Outputs
from vitslim.graph.sketch import ModelSketch
from vitslim.latency_grid import Shape
from vitslim.progress import Progress
from vitslim.recipe.accelerators import Accelerator
from vitslim.recipe.stage_config import StageConfig
from vitslim.results import LayerNote, Measurement, PrunedWidths, TensorBits


class SizedGemm(NamedTuple):
    """A matmul with operands of some bits."""

    shape: Shape
    """Count, rows, reduction and columns for one image."""
    bits: int
    """4 or 8 for integers, 16 for floats."""
    sparse: bool = False
    """Whether the weight is 2:4."""


GemmLatency = Callable[[Sequence[SizedGemm]], Sequence[float]]
"""Microseconds of matmuls on a backend, at a batch size."""


@dataclass(frozen=True)
class Deployment:
    """Functions that write, run and measure candidates, for stages that choose among them.

    The batch is the first of the recipe. Outputs and latency are of that batch: dynamic ranges depend on it.
    """

    write: Callable[[ModelGraph, Path], None]
    """Write a graph with the export profile of the recipe."""
    outputs: Callable[[Path, Tensor], Tensor]
    """Run a file in ONNX Runtime, on all cores: images (n, C, H, W) to outputs (n, k), see `graph.outputs.joined`."""
    write_int8: Callable[[ModelGraph, Path], None]
    """Write a graph quantized to INT8 on few images, to measure its latency; its accuracy is not that of the recipe."""
    latency: Callable[[Mapping[str, Path]], Mapping[str, Measurement]]
    """Measure files by name, interleaved, on the first backend of the recipe that runs ONNX files."""


@dataclass
class StageResult:
    """The result of a stage."""

    graph: ModelGraph
    changes: tuple[LayerNote, ...] = ()
    skipped: tuple[LayerNote, ...] = ()
    """Layers that the stage did not change, each with the reason."""
    metrics: dict[str, float] = field(default_factory=dict)
    bits: tuple[TensorBits, ...] = ()
    """Learned bits of each tensor; empty for a stage that learns none."""
    widths: PrunedWidths | None = None
    """Dimensions of every block before and after structural pruning, for the report."""
    snapshots: dict[str, StageResult] = field(default_factory=dict)
    """Further results of the stage by name; later stages run for each of them too."""


@dataclass(frozen=True)
class StageContext:
    """Everything that a stage may use besides the graph. The runner builds it."""

    data: DataModule
    seed: int
    progress: Progress
    result: Callable[[str], StageResult]
    """Result of an earlier stage: `dense`, `previous`, or the name of the stage. Never change its graph."""
    workdir: Path
    """Folder for files of the stage; `export` writes `model.onnx` here. It is deleted if the stage is interrupted."""
    deployment: Deployment | None = None
    """None if no measured backend of the recipe runs ONNX files."""
    keep: Path | None = None
    """Folder that survives an interruption: the stage finds its files here when it runs again."""
    accelerator: Accelerator | None = None
    """The approximations under which the stage trains; None without any."""
    written: Path | None = None
    """The ONNX file of the graph before the stage, if it has the profile and the interface of the export stage."""
    outputs_of: Callable[[str], Callable[[Tensor], Outputs] | None] = lambda _: None
    """Returns the float model of an earlier stage, by its name as in `result`, in ONNX Runtime on all cores: images
    (n, C, H, W) to its outputs. None for a quantized one, whose file rounds otherwise than its graph."""

    def graph_of(self, name: str) -> ModelGraph:
        """Return the graph of an earlier stage, for a teacher. Never change it."""
        return self.result(name).graph


class Stage(Protocol):
    """One entry of a recipe."""

    @property
    def config(self) -> StageConfig: ...

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Return the reasons that the stage cannot run on this model. Called before anything runs."""
        ...

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch of the model after the stage."""
        ...

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Run the stage on a copy of the graph."""
        ...

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Return the violated postconditions of the stage. Called after it ran."""
        ...
