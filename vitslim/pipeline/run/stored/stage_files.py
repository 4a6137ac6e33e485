"""The form of the ONNX file of each stage, and the file itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from vitslim.graph.edits import QuantizeAttention
from vitslim.graph.edits.fake_quant import quantized_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.pipeline.run.stored.store import StoredStage
from vitslim.recipe.formats.file_form import FileForm
from vitslim.recipe.formats.profiles import PORTABLE, Profile
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stages import Export
from vitslim.stages.export.onnx_export import DEFAULT_FORM, export_onnx


@dataclass(frozen=True)
class StageFile:
    """The profile and the interface of a file."""

    profile: Profile = PORTABLE
    form: FileForm = DEFAULT_FORM

    @property
    def key(self) -> str:
        """A text that differs for different forms."""
        return " ".join(map(str, (self.profile.name, *astuple(self.form))))

    def write(self, graph: ModelGraph, path: Path, class_names: Sequence[str]) -> None:
        """Write a graph with the names of its classes; see `export_onnx`."""
        export_onnx(graph, path, self.profile, class_names if graph.source.classes else (), self.form)


FLOAT_FILE = StageFile()
"""The file of every float model before the export stage: the portable form, which is the baseline of comparisons."""


def is_quantized(graph: ModelGraph) -> bool:
    """Return whether a model has quantizers, so that its file has the form of the export stage, which can hold them."""
    has_attention = any(isinstance(edit, QuantizeAttention) for edit in graph.edits)
    return has_attention or bool(quantized_layers(graph.module))


def exported_form(recipe: Recipe) -> StageFile:
    """Return the form of the file that the export stage of a recipe writes."""
    config = next((config for config in recipe.stages if isinstance(config, Export)), Export())
    return StageFile(config.export_profile, config.form)


def file_to_export(recipe: Recipe, last: StoredStage) -> Path | None:
    """Return the file of the stage before `export` if it has the form of the export stage already."""
    return last.onnx if (last.record.onnx_form or FLOAT_FILE.key) == exported_form(recipe).key else None
