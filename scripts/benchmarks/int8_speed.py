"""Speed of INT8 on larger models, one thread: vitslim's forms beside quantize_dynamic, every file of a model in one
interleaved run; and DeiT-S with fewer tokens and half the MLP on top.

Weights are random and calibration is short: figures are of speed alone. Twenty minutes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from by_processor import result_here
from int8 import ort_dynamic
from latency_row import latency_row

from vitslim.backends.environment import environment
from vitslim.backends.registry import Measured
from vitslim.data import load_data
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.profiles import ORT_CPU, PORTABLE, Profile
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import DepGraph, Etps, PruningRatios, Ptq, StageConfig
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.registry import make_stage

RESULT = "int8-speed"
BACKEND = "onnxruntime:cpu"
BATCHES, SECONDS = (1, 8), 3.0
QUICK = {"rounding": "nearest", "bias_correction": False}
SMALLER = (
    DepGraph(method="depgraph", pruning_ratio=0, pruning_ratios=PruningRatios(mlp=0.5)),
    Etps(method="etps", blocks=(3, 6, 9), keep_rate=0.7),
)
MODELS = ("deit_small_patch16_224", "swin_tiny_patch4_window7_224", "vit_base_patch16_224")


def run() -> dict[str, float]:
    """Fill this processor's table in scripts/results; speed-ups over FP32 by model, variant and batch size."""
    rows: dict[str, dict[str, float]] = {}
    for model in MODELS:
        with TemporaryDirectory() as folder:
            files = dict(_files(model, Path(folder)))
            found = Measured(BACKEND).measure(files, "FP32", BATCHES, (1,), SECONDS, Silent())
            for name, path in files.items():
                rows[f"{model} {name}"] = latency_row(found[name]) | {"mb": path.stat().st_size / 1e6}
        result = {"environment": environment().model_dump(), "rows": rows}
        result_here(RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{model}: measured", flush=True)
    return {f"{name} {key}": row[key] for name, row in rows.items() for key in row if key.startswith("speedup")}


def _files(model: str, folder: Path) -> Iterator[tuple[str, Path]]:
    dense = folder / "fp32.onnx"
    export_onnx(trace_timm(model, {}), dense)
    yield "FP32", dense
    yield "ORT quantize_dynamic", folder / "dynamic.onnx"
    ort_dynamic(dense, folder / "dynamic.onnx")
    for name, stages, profile in _variants(model):
        path = folder / f"{name}.onnx"
        _write(model, stages, path, profile)
        yield name, path


def _variants(model: str) -> Iterator[tuple[str, tuple[StageConfig, ...], Profile]]:
    yield "vitslim portable", (Ptq(**QUICK),), PORTABLE
    yield "vitslim static", (Ptq(**QUICK),), ORT_CPU
    yield "vitslim dynamic", (Ptq(**QUICK, activations="dynamic"),), ORT_CPU
    yield "vitslim static, attention too", (Ptq(**QUICK, attention=True),), ORT_CPU
    if model == MODELS[0]:
        yield "vitslim static, smaller", (*SMALLER, Ptq(**QUICK)), ORT_CPU
        yield "vitslim dynamic, smaller", (*SMALLER, Ptq(**QUICK, activations="dynamic")), ORT_CPU
        yield "vitslim static, attention too, smaller", (*SMALLER, Ptq(**QUICK, attention=True)), ORT_CPU


def _write(model: str, stages: tuple[StageConfig, ...], path: Path, profile: Profile) -> None:
    graph = trace_timm(model, {})
    data = load_data(Data(kind="digits", calibration=8), graph.source, 0)
    context = StageContext(data, 0, Silent(), lambda _: StageResult(graph), path.parent)
    for config in stages:
        graph = make_stage(config).apply(graph, context).graph
    export_onnx(graph, path, profile)
