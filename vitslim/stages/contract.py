"""What a stage is. Stages only wire: the mathematics lives in pure functions beside each `stage.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vitslim.data import DataModule
from vitslim.errors import Problem
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.progress import Progress
from vitslim.recipe.config import StageConfig
from vitslim.results import LayerNote, Measurement


@dataclass(frozen=True)
class Measure:
    """Latency on the first backend of the recipe that runs ONNX files, at its first batch size."""

    batch: int
    files: Callable[[Mapping[str, Path]], Mapping[str, Measurement]]
    """Latency of files by their names, interleaved."""


@dataclass
class StageResult:
    """What a stage gives back."""

    graph: ModelGraph
    changes: tuple[LayerNote, ...] = ()
    skipped: tuple[LayerNote, ...] = ()
    """Layers that the stage left alone, each with its reason."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageContext:
    """What a stage may use besides the graph. The runner builds it."""

    data: DataModule
    seed: int
    progress: Progress
    result: Callable[[str], StageResult]
    """Result of an earlier stage: `dense`, `previous`, `unquantized` (the last before weights became integers), or the
    stage's name. Never change its graph."""
    workdir: Path
    """Where the stage may write files; `export` writes `model.onnx` here. Gone when the stage is interrupted."""
    measure: Measure | None = None
    """None where no backend of the recipe runs ONNX files."""
    keep: Path | None = None
    """What a stage writes here outlives an interruption: the same stage finds it when it is run again."""


class Stage(Protocol):
    """One entry of a recipe."""

    @property
    def config(self) -> StageConfig: ...

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """What this model lacks for the stage; asked before anything runs."""
        ...

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """The sketch of the model as it will be after the stage."""
        ...

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Do the work on a copy of the graph."""
        ...

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """What the stage promised and did not keep; asked after it ran."""
        ...
