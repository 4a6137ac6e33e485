"""INT8 latency of larger models with one thread: vitslim compared with quantize_dynamic, into scripts/results.

All files of a model are measured in one interleaved run. DeiT-S is also measured with fewer tokens and half of the MLP
units. Weights are random and calibration is short, because only latency is measured. Takes about twenty minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from by_processor import reduce_range_here, result_here
from latency_row import latency_row
from other_quantizers import ort_dynamic
from result_file import write_result

from vitslim.backends.registry import Measured
from vitslim.data import load_data
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.formats.profiles import ORT_CPU, PORTABLE, Profile
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import DepGraph, Etps, PruningRatios, Ptq, StageConfig
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.registry import make_stage

RESULT = "int8-speed"
BACKEND = "onnxruntime:cpu"
BATCHES, SECONDS = (1, 8), 3.0
QUICK: dict[str, Any] = {"rounding": "nearest", "bias_correction": False, "reduce_range": reduce_range_here()}
SMALLER = (
    DepGraph(method="depgraph", pruning_ratio=0, pruning_ratios=PruningRatios(mlp=0.5)),
    Etps(method="etps", blocks=(3, 6, 9), keep_rate=0.7),
)
MODELS = ("deit_small_patch16_224", "swin_tiny_patch4_window7_224", "vit_base_patch16_224")


def run() -> dict[str, float]:
    """Write the result of this processor; return speedups over FP32 by model, variant and batch size."""
    rows: dict[str, dict[str, float]] = {}
    for model in MODELS:
        with TemporaryDirectory() as folder:
            files = dict(_files(model, Path(folder)))
            found = Measured(BACKEND).measure(files, "FP32", BATCHES, (1,), SECONDS, Silent())
            for name, path in files.items():
                rows[f"{model} {name}"] = latency_row(found[name]) | {"mb": path.stat().st_size / 1e6}
        write_result(result_here(RESULT), rows=rows)
        print(f"{model}: measured", flush=True)
    return {f"{name} {key}": row[key] for name, row in rows.items() for key in row if key.startswith("speedup")}


def _files(model: str, folder: Path) -> Iterator[tuple[str, Path]]:
    dense = folder / "fp32.onnx"
    export_onnx(trace_timm(model, {}), dense)
    yield "FP32", dense
    yield "ORT quantize_dynamic", folder / "dynamic.onnx"
    ort_dynamic(dense, folder / "dynamic.onnx")
    for name, (stages, profile) in _variants(model).items():
        path = folder / f"{name}.onnx"
        _write(model, stages, path, profile)
        yield name, path


def _variants(model: str) -> dict[str, tuple[tuple[StageConfig, ...], Profile]]:
    """Return the stages and the export profile of each row."""
    static, dynamic, attention = Ptq(**QUICK), Ptq(**QUICK, activations="dynamic"), Ptq(**QUICK, attention=True)
    found: dict[str, tuple[tuple[StageConfig, ...], Profile]] = {
        "vitslim INT8, profile: portable": ((static,), PORTABLE),
        "vitslim INT8, static": ((static,), ORT_CPU),
        "vitslim INT8, dynamic": ((dynamic,), ORT_CPU),
        "vitslim INT8, static, attention matmuls": ((attention,), ORT_CPU),
    }
    if model == MODELS[0]:
        found |= {
            "vitslim INT8, static, pruned and token-squeezed": ((*SMALLER, static), ORT_CPU),
            "vitslim INT8, dynamic, pruned and token-squeezed": ((*SMALLER, dynamic), ORT_CPU),
            "vitslim INT8, static, attention matmuls, pruned and token-squeezed": ((*SMALLER, attention), ORT_CPU),
        }
    return found


def _write(model: str, stages: tuple[StageConfig, ...], path: Path, profile: Profile) -> None:
    graph = trace_timm(model, {})
    data = load_data(Data(kind="digits", calibration=8), graph.source, 0)
    context = StageContext(data, 0, Silent(), lambda _: StageResult(graph), path.parent)
    for config in stages:
        graph = make_stage(config).apply(graph, context).graph
    export_onnx(graph, path, profile)
