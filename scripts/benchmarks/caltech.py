"""The DeiT-Tiny that was fine-tuned on Caltech-101, and its images."""

from __future__ import annotations

from paths import require_shared

from vitslim.data import DataModule, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.recipe.schema import Data

MODEL = "deit_tiny_patch16_224"


def caltech(calibration: int = 256) -> tuple[ModelGraph, DataModule]:
    """Return the dense model of 100 classes, and its data with a number of calibration images."""
    folder = require_shared("caltech101")
    dense = trace_timm(MODEL, {"num_classes": 100}, folder / "deit_tiny_caltech101.safetensors")
    config = Data(kind="imagefolder", root=str(folder), classes="torchvision", calibration=calibration)
    return dense, load_data(config, dense.source, 0)
