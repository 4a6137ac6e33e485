"""Write, run and measure candidates of a stage, with the export profile and the backends of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vitslim.data import DataModule
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.outputs import joined
from vitslim.pipeline.bench.quantized_model import quantized
from vitslim.pipeline.latency import latency_of_files
from vitslim.progress import Progress
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stages import Export, Ptq
from vitslim.results import Measurement
from vitslim.stages.contract import Deployment
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.training.engine.collectives import on_first_rank
from vitslim.workload.session import OnnxModel

RANGE_IMAGES = 16
"""Calibration images on which the ranges of half-precision candidates are checked."""


def make_deployment(recipe: Recipe, data: DataModule, progress: Progress) -> Deployment | None:
    """Return the deployment of a recipe; None if no measured backend runs ONNX files. data: for INT8 ranges.

    Files have the profile, batch size and opset of the export stage. Of several ranks, the first writes, runs and
    measures them, and all get the results.
    """
    latency = latency_of_files(recipe.report, progress)
    if latency is None:
        return None
    export = next((config for config in recipe.stages if isinstance(config, Export)), Export())
    profile, form = export.export_profile, export.form
    int8 = next((config for config in recipe.stages if isinstance(config, Ptq)), Ptq(reduce_range=False))
    batch = recipe.report.batches[0]

    images = data.calibration.balanced(RANGE_IMAGES).stacked().numpy() if profile.half_precision else None

    def write(graph: ModelGraph, path: Path) -> None:
        on_first_rank(lambda: export_onnx(graph, path, profile, form=form, images=images))

    def outputs(path: Path, images: Tensor) -> Tensor:
        def run() -> Tensor:
            model = OnnxModel(path)
            found = (model.run(part.numpy()) for part in torch.split(images, batch))
            return torch.cat([joined([torch.from_numpy(one) for one in values]) for values in found])

        return on_first_rank(run)

    def write_int8(graph: ModelGraph, path: Path) -> None:
        int8_graph = quantized(graph, data.calibration, recipe.seed, int8)
        on_first_rank(lambda: export_onnx(int8_graph, path, profile, form=form))

    def measured(files: Mapping[str, Path]) -> Mapping[str, Measurement]:
        return on_first_rank(lambda: dict(latency(files)))

    return Deployment(write, outputs, write_int8, measured)
