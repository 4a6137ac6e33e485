"""Write, run and measure candidates of a stage, with the export profile and the backends of the recipe."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vitslim.graph.model_graph import ModelGraph
from vitslim.pipeline.latency import latency_of_files
from vitslim.progress import Progress
from vitslim.recipe.profiles import PORTABLE
from vitslim.recipe.schema import Recipe
from vitslim.stages.contract import Deployment
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.workload.session import OnnxModel


def make_deployment(recipe: Recipe, progress: Progress) -> Deployment | None:
    """Return the deployment of a recipe; None if no measured backend runs ONNX files.

    Without an export stage, files have the default profile, as the file of each stage has.
    """
    latency = latency_of_files(recipe.report, progress)
    if latency is None:
        return None
    profile = next((config.export_profile for config in recipe.stages if config.export_profile), PORTABLE)
    batch = recipe.report.batches[0]

    def write(graph: ModelGraph, path: Path) -> None:
        export_onnx(graph, path, profile)

    def logits(path: Path, images: Tensor) -> Tensor:
        model = OnnxModel(path)
        parts = torch.split(images, batch)
        return torch.cat([torch.from_numpy(model(part.numpy())) for part in parts])

    return Deployment(write, logits, latency)
