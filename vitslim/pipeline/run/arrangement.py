"""The files of a run in the layout of its recipe."""

from __future__ import annotations

from vitslim.files import LayoutFiles
from vitslim.pipeline.run.stage_run import StageRunner
from vitslim.recipe.stages import Export
from vitslim.stages.export.layouts import LAYOUTS, ExportedModel


def layout_files(runner: StageRunner) -> LayoutFiles:
    """Return the place of the exported model in the folder of a run, and the files that the layout adds."""
    recipe, last = runner.recipe, runner.finished[-1]
    layout = next((config.layout for config in recipe.stages if isinstance(config, Export)), "plain")
    names = runner.data.calibration.class_names
    return LAYOUTS[layout].files(ExportedModel(recipe.name, last.onnx, last.graph, names, recipe.report.batches))
