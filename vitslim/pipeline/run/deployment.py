"""Write, run and measure candidates of a stage, with the export profile and the backends of the recipe."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vitslim.data import DataModule
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.outputs import joined
from vitslim.pipeline.bench.quantized_model import quantized
from vitslim.pipeline.latency import latency_of_files
from vitslim.progress import Progress
from vitslim.recipe.profiles import PORTABLE
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import Deployment
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.workload.session import OnnxModel


def make_deployment(recipe: Recipe, data: DataModule, progress: Progress) -> Deployment | None:
    """Return the deployment of a recipe; None if no measured backend runs ONNX files. data: for INT8 ranges.

    Without an export stage, files have the default profile, as the file of each stage has.
    """
    latency = latency_of_files(recipe.report, progress)
    if latency is None:
        return None
    profile = next((config.export_profile for config in recipe.stages if config.export_profile), PORTABLE)
    int8 = next((config for config in recipe.stages if isinstance(config, Ptq)), Ptq(reduce_range=False))
    batch = recipe.report.batches[0]

    def write(graph: ModelGraph, path: Path) -> None:
        export_onnx(graph, path, profile)

    def outputs(path: Path, images: Tensor) -> Tensor:
        model = OnnxModel(path)
        found = (model.run(part.numpy()) for part in torch.split(images, batch))
        return torch.cat([joined([torch.from_numpy(one) for one in values]) for values in found])

    def write_int8(graph: ModelGraph, path: Path) -> None:
        export_onnx(quantized(graph, data.calibration, recipe.seed, int8), path, profile)

    return Deployment(write, outputs, write_int8, latency)
