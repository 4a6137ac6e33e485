"""Speedups of INT8 and 2:4 over dense FP16 on an NVIDIA GPU, into scripts/results/torch-cuda.json.

Measures DeiT-S, DeiT-B and ViT-L with random weights at batch 1, 64 and 256 in CUDA graphs, and the GEMMs of DeiT-B
alone. The models are prepared on the CPU first and kept in runs/torch-cuda. Takes minutes on one GPU; needs no images.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from latency_row import latency_row
from paths import RESULTS, RUNS
from result_file import write_result

from vitslim.backends.environment import cores
from vitslim.backends.gemm_list import Gemm
from vitslim.backends.registry import Measured
from vitslim.data import load_data
from vitslim.errors import BackendUnavailableError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import WEIGHTS_FILE, save_graph
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Ptq, TwoFour
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.quantize.ptq.stage import PtqStage

RESULT = RESULTS / "torch-cuda.json"
FOLDER = RUNS / "torch-cuda"
VARIANTS = ("FP16", "FP16 2:4", "INT8", "INT8 2:4")
MODELS = ("deit_small_patch16_224", "deit_base_patch16_224", "vit_large_patch16_224")
BATCHES = (1, 64, 256)
SECONDS = 2.0
WIDTH, TOKENS = 768, 197
"""Embedding width and tokens of DeiT-B."""


def run() -> dict[str, float]:
    """Return speedups over dense FP16 by model, variant and batch size."""
    backend = Measured("torch:cuda")
    backend.require()
    rows: dict[str, dict[str, Any]] = {}
    for model, files in _prepared():
        rows |= _measured(backend, model, files)
        write_result(RESULT, rows=rows)
        print(f"{model}: measured", flush=True)
    write_result(RESULT, rows=rows, gemms=_gemms(backend))
    return {f"{name} {key}": value for name, row in rows.items() for key, value in row.items()
            if key.startswith("speedup")}  # fmt: skip


def _measured(backend: Measured, model: str, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Return a row for each variant, measured in one interleaved run.

    If a variant cannot run, each one is measured with FP16 alone, and the row of that variant holds the error.
    """
    try:
        found = backend.measure(files, "FP16", BATCHES, (1,), SECONDS, Silent())
    except BackendUnavailableError as error:
        if len(files) <= 2:
            return {f"{model} {list(files)[-1]}": {"error": error.message}}
        pairs = ({"FP16": files["FP16"], name: path} for name, path in files.items())
        return {name: row for pair in pairs for name, row in _measured(backend, model, pair).items()}
    return {f"{model} {name}": latency_row(measurements) for name, measurements in found.items()}


def _prepared() -> Iterator[tuple[str, dict[str, Path]]]:
    """Yield each model with the files of its variants, which are kept for the next run.

    All models are prepared before the first is measured, because the preparation would disturb the measurement.
    """
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        ready = list(pool.map(_prepare, MODELS))
    return zip(MODELS, ready, strict=True)


def _prepare(model: str) -> dict[str, Path]:
    files = {name: FOLDER / model / name / "model.onnx" for name in VARIANTS}
    if not all(file.with_name(WEIGHTS_FILE).exists() for file in files.values()):
        torch.set_num_threads(max(1, cores() // len(MODELS)))
        for graph, file in zip(_variants(model), files.values(), strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            save_graph(graph, file.parent)
    return files


def _variants(model: str) -> tuple[ModelGraph, ...]:
    """Return the graphs in the order of VARIANTS."""
    dense = trace_timm(model, {})
    data = load_data(Data(kind="digits", calibration=4), dense.source, 0)
    context = StageContext(data, 0, Silent(), lambda _: StageResult(dense), Path())
    sparse = TwoFourStage(TwoFour(method="two-four")).apply(dense, context).graph
    ptq = PtqStage(Ptq(symmetric=True, rounding="nearest", bias_correction=False, reduce_range=False))
    return dense, sparse, ptq.apply(dense, context).graph, ptq.apply(sparse, context).graph


def _gemms(backend: Measured) -> list[dict[str, Any]]:
    """Return the microseconds of the linear layers of DeiT-B at each data type, dense and 2:4."""
    gemms = [
        Gemm(m=batch * TOKENS, n=n * WIDTH, k=k * WIDTH, dtype=dtype, sparse=sparse, count=1)
        for batch in BATCHES
        for n, k in ((3, 1), (1, 1), (4, 1), (1, 4))
        for dtype in ("FP16", "INT8")
        for sparse in (False, True)
    ]
    return [{"m": g.m, "n": g.n, "k": g.k, "dtype": g.dtype, "sparse": g.sparse, **_gemm(backend, g)} for g in gemms]


def _gemm(backend: Measured, gemm: Gemm) -> dict[str, Any]:
    try:
        return {"us": backend.gemm_us([gemm], 1, Silent())[0]}
    except RuntimeError as error:
        return {"error": str(error).partition("\n")[0]}
