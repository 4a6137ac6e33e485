"""Token squeezing on models of several families: ONNX Runtime against PyTorch, or the reason that a model is refused.

Weights are random. Each file runs at batches 1, 2 and 7.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from paths import RESULTS
from result_file import write_result

from vitslim.data import DataModule, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import cost, sketch
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import DiffRate, Dtps, DynamicVit, Etps, Evit, PruneOnly, StageConfig, Tome
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.registry import make_stage
from vitslim.workload.session import OnnxModel

MODELS: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": {},
    "deit_small_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {"img_size": 224},
    "vit_base_patch32_siglip_256": {},
    "eva02_tiny_patch14_224": {},
    "cait_xxs24_224": {},
    "swin_tiny_patch4_window7_224": {},
}
"""timm name to its keyword arguments."""
RATE = 0.7
METHODS: dict[str, StageConfig] = {
    "etps": Etps(method="etps", keep_rate=RATE),
    "evit": Evit(method="evit", keep_rate=RATE),
    "prune-only": PruneOnly(method="prune-only", keep_rate=RATE),
    "dtps": Dtps(method="dtps", keep_rate=RATE),
    "dynamicvit": DynamicVit(method="dynamicvit", keep_rate=RATE),
    "tome": Tome(method="tome", remove=8),
    "diffrate": DiffRate(method="diffrate", macs=0.8, train=Train(epochs=1, batch=4)),
}
BATCHES = (1, 2, 7)


def run() -> dict[str, float]:
    """Write scripts/results/token-models.json; return the largest difference of logits in each row."""
    rows: dict[str, dict[str, Any]] = {}
    for model, kwargs in MODELS.items():
        dense = trace_timm(model, kwargs)
        data = load_data(Data(kind="digits", calibration=8), dense.source, 0)
        for method, config in METHODS.items():
            rows[f"{model} {method}"] = row = _row(dense, config, data)
            print(json.dumps({f"{model} {method}": row}), flush=True)
            write_result(RESULTS / "token-models.json", rows=rows)
    return {name: row["max_difference"] for name, row in rows.items() if "max_difference" in row}


def _row(dense: ModelGraph, config: StageConfig, data: DataModule) -> dict[str, Any]:
    stage = make_stage(config)
    problems = stage.requires(sketch(dense))
    if problems:
        return {"refused": problems[0].message}
    with TemporaryDirectory() as folder:
        context: Any = StageContext(data, 0, Silent(), lambda _: StageResult(dense), Path(folder))
        graph = stage.apply(dense, context).graph
        file = Path(folder) / "model.onnx"
        export_onnx(graph, file)
        model = OnnxModel(file)
        images = torch.randn(sum(BATCHES), *dense.source.image, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            differences = [
                float((torch.from_numpy(model(one.numpy())) - graph.module(one)).abs().max())
                for one in images.split(list(BATCHES))
            ]
    return {"max_difference": max(differences), "macs_ratio": cost(graph).macs / cost(dense).macs}
