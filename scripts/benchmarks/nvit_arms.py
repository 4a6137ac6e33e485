"""Methods that `scripts/bench nvit` compares, as stages that prune to a share of the dense latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from by_processor import reduce_range_here
from paths import RUNS

from vitslim.backends.registry import Measured, parse_backend
from vitslim.data import Dataset
from vitslim.graph.model_graph import ModelGraph
from vitslim.latency_grid import Precision
from vitslim.pipeline.bench.quantized_model import quantized
from vitslim.pipeline.bench.table_cache import cached_table
from vitslim.progress import Silent
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.recipe.schema import Model
from vitslim.recipe.stages import Budget, DepGraph, Nvit, PruningRatios, Ptq
from vitslim.recipe.stages.training import Loss
from vitslim.recipe.train import Train
from vitslim.results import LatencyTable, Measurement
from vitslim.stages.contract import Deployment, Stage
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.registry import make_stage

FOLDER = RUNS / "nvit-bench"
MODEL, BACKEND = "deit_tiny_patch16_224", "onnxruntime:cpu"
SECONDS = 5.0
"""Measuring time of each file in one round of the correction of a latency."""
INT8 = Ptq(reduce_range=reduce_range_here())
TABLE_KEY = "measured"
"""The path of a table in a config; stages get the table itself."""

Arm = Callable[[float, LatencyTable, bool], Stage]
"""Returns the stage that prunes to a share of the latency; the last argument: whether there are labels."""


def table_of(model: str, kwargs: dict[str, Any], backend: str, batch: int, precision: Precision) -> LatencyTable:
    """Return a latency table, kept in runs/nvit-bench/tables."""
    cache = FOLDER / "tables"
    return cached_table(Model(timm=model, kwargs=kwargs), parse_backend(backend), batch, 1, precision, cache, Silent())


def _nvit(**keys: Any) -> Arm:
    def make(share: float, table: LatencyTable, has_labels: bool) -> Stage:
        own = {"labels": "dataset" if has_labels else "teacher", **keys}
        return make_stage(Nvit(method="nvit", budget=Budget(latency=share, table=TABLE_KEY), **own), table)

    return make


def _nvit_published(share: float, table: LatencyTable, has_labels: bool) -> Stage:
    """Prune within one epoch of training; steps are larger for a smaller share, so that each share takes as many."""
    return _nvit(measure=True, per_step=round(PER_STEP * (1 - share)), **TRAINED)(share, table, has_labels)


def _depgraph(**keys: Any) -> Arm:
    def make(share: float, table: LatencyTable, has_labels: bool) -> Stage:  # noqa: ARG001
        budget = Budget(latency=share, table=TABLE_KEY)
        return make_stage(DepGraph(method="depgraph", budget=budget, pruning_ratio=0.0, **keys), table)

    return make


RATIOS = PruningRatios(heads=0.5, head_dim=0.25, mlp=0.5, embed=0.5)
"""Published for DeiT-B at 4.2 GMACs; the budget scales all of them."""
ISOMORPHIC: dict[str, Any] = {"scope": "isomorphic", "pruning_ratios": RATIOS}
ONE_SHOT: dict[str, Any] = {"update_weights": False, "interval": 8, "loss": Loss(hard=1, soft=0),
                            "train": Train(epochs=1, batch=32, images=256)}  # fmt: skip
"""Saliencies of 256 images, as many as DepGraph's."""
TRAINED: dict[str, Any] = {"interval": 5, "loss": Loss(hard=1, soft=1),
                           "train": Train(epochs=1, batch=32, lr=1e-4, precision="auto")}  # fmt: skip
"""Pruning inside one epoch of training."""
STEPS = 12
"""Of the arms that prune in equal steps."""
PER_STEP = 1280
"""Units that a published step would remove for a share of 0; the target is met after about 11 of 15 steps."""

ARMS: dict[str, Arm] = {
    "isomorphic taylor": _depgraph(importance="taylor", **ISOMORPHIC),
    "isomorphic hessian": _depgraph(importance="hessian", **ISOMORPHIC),
    "nvit solver": _nvit(allocation="solver", measure=True, **ONE_SHOT),
    "nvit solver in steps": _nvit(allocation="solver", measure=True, steps=STEPS, **TRAINED),
    "nvit solver in steps, all branches": _nvit(
        allocation="solver", measure=True, steps=STEPS, remove_blocks=False, **TRAINED
    ),
    "nvit published": _nvit_published,
    "uniform": _depgraph(importance="taylor", scope="local"),
    "global": _depgraph(importance="taylor", scope="global"),
    "nvit eta 0 in steps": _nvit(measure=True, steps=STEPS, eta=0.0, **TRAINED),
}
"""Name to stage; the first is the baseline of the paired bootstrap. In all of them the heads of a block keep equal
dims: an exported attention has one head dim, so heads of different dims would be padded to the largest."""
TRAINS = {name for name in ARMS if "in steps" in name} | {"nvit published"}
"""Arms that train one epoch while pruning."""
FREE: dict[str, Arm] = {
    **{name: ARMS[name] for name in ARMS if name not in TRAINS and name != "nvit solver"},
    "nvit solver": _nvit(allocation="solver", **ONE_SHOT),
    "nvit published": _nvit(update_weights=False, interval=1, per_step=64, loss=Loss(hard=1, soft=0),
                            train=Train(epochs=8, batch=32, images=1024)),
}  # fmt: skip
"""Arms without training."""


def deployment(images: Dataset) -> Deployment:
    """Return the deployment for candidates on ONNX Runtime, FP32 or INT8."""

    def write_int8(graph: ModelGraph, path: Path) -> None:
        export_onnx(quantized(graph, images, 0, INT8), path, ORT_CPU)

    def logits(path: Path, found: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(path, found)

    return Deployment(lambda graph, path: export_onnx(graph, path, ORT_CPU), logits, write_int8, measure)


def measure(files: Mapping[str, Path]) -> dict[str, Measurement]:
    """Return the latency of files at batch 1 on one thread; the first file is the baseline of speedups."""
    found = Measured(BACKEND).measure(files, next(iter(files)), (1,), (1,), SECONDS, Silent())
    return {name: rows[0] for name, rows in found.items()}
