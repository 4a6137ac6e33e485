"""An INT8 model for latency measurements."""

from __future__ import annotations

from pathlib import Path

from vitslim.data import DataModule, Dataset
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.registry import make_stage

IMAGES = 8
"""Calibration images: ranges have no effect on latency."""
FAST = {"rounding": "nearest", "bias_correction": False, "placement": "fixed"}
"""Keys of quantization that change the accuracy of the result and the time that it takes, but not its latency."""


def quantized(graph: ModelGraph, images: Dataset, seed: int, config: Ptq) -> ModelGraph:
    """Return the graph quantized as `config` says, in short time: its latency is valid, its accuracy is not."""
    few = images.balanced(IMAGES, seed)
    fast = config.model_copy(update=FAST)
    context = StageContext(DataModule(few, few, few), seed, Silent(), lambda _: StageResult(graph), Path())
    return make_stage(fast).apply(graph, context).graph
