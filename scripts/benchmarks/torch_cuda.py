"""Whole models on an NVIDIA GPU: FP16, INT8 and 2:4 beside dense FP16, into scripts/results/torch-cuda.json.

DeiT-S and -B and ViT-L with random weights, batches 1, 64 and 256, each variant beside FP16 in CUDA graphs; and
the matrix products of DeiT-B alone. Minutes on one GPU. Needs a GPU, and no images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vitslim.backends.environment import cores, environment
from vitslim.backends.gemm_list import Gemm
from vitslim.backends.registry import Measured
from vitslim.data import load_data
from vitslim.errors import BackendUnavailableError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.persist import save_graph
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Ptq, TwoFour
from vitslim.results import Measurement
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.two_four_stage import TwoFourStage
from vitslim.stages.quantize.stage import PtqStage

RESULT = Path(__file__).resolve().parents[1] / "results" / "torch-cuda.json"
MODELS = ("deit_small_patch16_224", "deit_base_patch16_224", "vit_large_patch16_224")
BATCHES = (1, 64, 256)
SECONDS = 2.0
WIDTH, TOKENS = 768, 197
"""Of DeiT-B."""


def run() -> dict[str, float]:
    """Speed-ups over dense FP16, by model, variant and batch size."""
    backend = Measured("torch:cuda")
    backend.require()
    result = {"environment": environment().model_dump(), "gemms": _gemms(backend)}
    rows: dict[str, dict[str, Any]] = {}
    # Processes of their own prepare the next models while one is measured: that takes longer than measuring.
    with TemporaryDirectory() as folder, ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        prepared = [pool.submit(_prepare, model, Path(folder) / model) for model in MODELS]
        for model, ready in zip(MODELS, prepared, strict=True):
            rows |= _measured(backend, model, ready.result())
            RESULT.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
            print(f"{model}: measured", flush=True)
    return {f"{name} {key}": value for name, row in rows.items() for key, value in row.items()
            if key.startswith("speedup") and value is not None}  # fmt: skip


def _measured(backend: Measured, model: str, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """A row for each variant, with what refused to run in place of figures."""
    rows: dict[str, dict[str, Any]] = {}
    for name, path in files.items():
        try:
            pair = {"FP16": files["FP16"], name: path}
            found = backend.measure(pair, "FP16", BATCHES, (1,), SECONDS, Silent())
            rows[f"{model} {name}"] = _row(found[name])
        except BackendUnavailableError as error:
            rows[f"{model} {name}"] = {"error": error.message}
    return rows


def _row(measurements: Sequence[Measurement]) -> dict[str, Any]:
    return {
        f"{key}_b{m.batch}": value
        for m in measurements
        for key, value in (("ms", m.median_ms), ("spread_ms", m.spread_ms), ("n", m.n), ("speedup", m.speedup))
    }


def _prepare(model: str, folder: Path) -> dict[str, Path]:
    torch.set_num_threads(max(1, cores() // len(MODELS)))
    return {name: _saved(graph, folder / name) for name, graph in _variants(model).items()}


def _variants(model: str) -> dict[str, ModelGraph]:
    dense = trace_timm(model, {})
    data = load_data(Data(kind="digits", calibration=4), dense.source, 0)
    context = StageContext(data, 0, Silent(), lambda _: StageResult(dense), Path())
    sparse = TwoFourStage(TwoFour(method="two-four")).apply(dense, context).graph
    small = PtqStage(Ptq(inputs="symmetric", rounding="nearest", bias_correction=False))
    return {
        "FP16": dense,
        "FP16 2:4": sparse,
        "INT8": small.apply(dense, context).graph,
        "INT8 2:4": small.apply(sparse, context).graph,
    }


def _saved(graph: ModelGraph, folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_graph(graph, folder)
    return folder / "model.onnx"


def _gemms(backend: Measured) -> list[dict[str, Any]]:
    """Microseconds of the linear layers of DeiT-B."""
    products = [
        Gemm(m=batch * TOKENS, n=n * WIDTH, k=k * WIDTH, dtype=dtype, sparse=sparse, count=1)
        for batch in BATCHES
        for n, k in ((3, 1), (1, 1), (4, 1), (1, 4))
        for dtype in ("FP16", "INT8")
        for sparse in (False, True)
    ]
    return [{"m": g.m, "n": g.n, "k": g.k, "dtype": g.dtype, "sparse": g.sparse, **_gemm(backend, g)} for g in products]


def _gemm(backend: Measured, product: Gemm) -> dict[str, Any]:
    try:
        return {"us": backend.gemm_us([product], 1, Silent())[0]}
    except RuntimeError as error:
        return {"error": str(error).partition("\n")[0]}
