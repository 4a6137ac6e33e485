"""GPUSQ on DeiT-Tiny with pretrained weights and without labels, step by step, each compared with an earlier step.

Masks, distillation and quantization use Imagenette's training images only; models are evaluated on 500 images of its
validation folder and on one image of each of 500 ImageNet classes. Models, logits and training states are kept in
runs/gpusq-bench, so that an interrupted run continues; delete the folder to start again. Takes about half an hour on
two idle cores with AVX512-BF16. The last row needs a GPU and is skipped without one. Needs the folder that
VITSLIM_SHARED_DATA names.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from gpusq_steps import CALIBRATION, CONTRASTS, STEPS
from paired_bootstrap import difference
from paths import RESULTS, RUNS, SHARED, require_shared
from result_file import write_result
from safetensors.torch import load_file, save_file

from vitslim.data import DataModule, load_data
from vitslim.data.load import calibration_set
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.stages.contract import Stage, StageContext, StageResult
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.quantize.qat.stage import QatStage
from vitslim.training.evaluate import predict, sqnr_db

RESULT = RESULTS / "gpusq-deit-tiny.json"
FOLDER = RUNS / "gpusq-bench"

MODEL = "deit_tiny_patch16_224"
BATCH = 25
VAL_IMAGES = 500


def run() -> dict[str, float]:
    """Fill scripts/results/gpusq-deit-tiny.json, and return the agreement of each row on 500 classes."""
    images = require_shared("imagenette")
    dense = trace_timm(MODEL, {}, SHARED / "deit_tiny" / "model.safetensors")
    data = load_data(Data(kind="imagefolder", root=str(images), calibration=256,
                          also_evaluate={"samples": str(SHARED / "imagenet_samples")}), dense.source, 0)  # fmt: skip
    results = {"dense": StageResult(dense)}
    reference = _predictions(dense, data)
    agreeing: dict[str, torch.Tensor] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, (source, make) in STEPS.items():
        if not (torch.cuda.is_available() or _kept_at(name).exists()) and _needs_gpu(make()):
            print(f"{name}: skipped, needs a GPU", flush=True)
            continue
        results[name] = _make(name, results, source, make, data)
        found = _kept_predictions(name, results[name].graph, data)
        agreeing[name] = (found["samples"].argmax(dim=1) == reference["samples"].argmax(dim=1)).float()
        rows[name] = _row(results[name], found, reference, data)
        print(json.dumps({name: rows[name]}), flush=True)
        pairs = [(a, b) for a, b in CONTRASTS if {a, b} <= agreeing.keys()]
        contrasts = {f"{a} - {b}": difference(agreeing[a], agreeing[b]) for a, b in pairs}
        write_result(RESULT, rows=rows, contrasts=contrasts)
    return {name: row["agreement_samples"] for name, row in rows.items()}


def _needs_gpu(stage: Stage) -> bool:
    return isinstance(stage, DistillStage | QatStage) and stage.config.train.device == "cuda"


def _kept_at(name: str) -> Path:
    """Return the path of the metrics of a kept model, which are written after its weights."""
    return FOLDER / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") / "metrics.json"


def _make(
    name: str, results: dict[str, StageResult], source: str, make: Callable[[], Stage], data: DataModule
) -> StageResult:
    """Apply a step to the model that it starts from, or load the result that an earlier run kept."""
    metrics_file, folder = _kept_at(name), _kept_at(name).parent
    if metrics_file.exists():
        return StageResult(load_graph(folder), metrics=json.loads(metrics_file.read_text("utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    sources, keep = {**results, "previous": results[source]}, folder / "training"
    if name in CALIBRATION:
        data = replace(data, calibration=calibration_set(data.train, CALIBRATION[name], 0))
    context = StageContext(data, 0, Silent(), sources.__getitem__, folder, keep=keep)
    start = perf_counter()
    result = make().apply(results[source].graph, context)
    # An interrupted training reports the seconds of all of its parts.
    result.metrics["seconds"] = max(perf_counter() - start, result.metrics.get("seconds", 0))
    save_graph(result.graph, folder)
    metrics_file.write_text(json.dumps(result.metrics), encoding="utf-8")
    shutil.rmtree(keep, ignore_errors=True)
    return result


def _kept_predictions(name: str, graph: ModelGraph, data: DataModule) -> dict[str, torch.Tensor]:
    """Return the logits of a kept model on the evaluation images, from the earlier run if it stored them."""
    file = _kept_at(name).with_name("logits.safetensors")
    if file.exists():
        return load_file(file)
    found = _predictions(graph, data)
    save_file(found, file)
    return found


def _predictions(graph: ModelGraph, data: DataModule) -> dict[str, torch.Tensor]:
    sets = {"samples": data.extra["samples"], "val": data.val.balanced(VAL_IMAGES)}
    return {name: predict(graph.module, images, BATCH, Silent(), "")[0] for name, images in sets.items()}


def _row(
    result: StageResult, found: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], data: DataModule
) -> dict[str, float]:
    labels = {"samples": data.extra["samples"].labels, "val": data.val.balanced(VAL_IMAGES).labels}
    row = {"device_mb": sketch(result.graph).cost().device_bytes / 1e6, "seconds": result.metrics["seconds"]}
    row |= {key: result.metrics[key] for key in ("kept_magnitude",) if key in result.metrics}
    for name, logits in found.items():
        predicted = logits.argmax(dim=1)
        row[f"agreement_{name}"] = float((predicted == reference[name].argmax(dim=1)).float().mean())
        row[f"top1_{name}"] = float((predicted == torch.as_tensor(labels[name])).float().mean())
        row[f"sqnr_db_{name}"] = sqnr_db(reference[name], logits)
    return row
