"""The interface of layouts: what they need to know of a model, and the files that they add."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vitslim.files import LayoutFiles
from vitslim.graph.model_graph import ModelGraph


@dataclass(frozen=True)
class ExportedModel:
    """An exported model and its file."""

    name: str
    """Name of the recipe."""
    path: Path
    """The ONNX file."""
    graph: ModelGraph
    class_names: tuple[str, ...]
    """In the order of the outputs."""
    batches: tuple[int, ...]
    """Batch sizes of the report."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all outputs of the classifier; empty if the images do not name all of them."""
        return self.class_names if len(self.class_names) == self.graph.source.classes else ()


@dataclass(frozen=True)
class Layout:
    """One way to arrange the folder of a run."""

    files: Callable[[ExportedModel], LayoutFiles]
    obstacles: Callable[[ModelGraph], Iterator[tuple[str, str]]] = lambda _graph: iter(())
    """Yield the reasons that a model cannot have this layout, each with a hint."""
