"""Rows of `scripts/bench nipq` without training: W4A4, and FP8 beside INT8, of DeiT-Tiny."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from kept_model import folder_of, make_model
from nipq_rows import classes_of
from paths import SHARED, require_shared
from safetensors.torch import load_file

from vitslim.data import DataModule, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.recipe.formats.profiles import PORTABLE
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Ptq
from vitslim.stages.export.check import OnnxFile, compare_outputs
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.registry import make_stage
from vitslim.training.evaluate import sqnr_db

MODEL = "deit_tiny_patch16_224"
PARITY_IMAGES = 32
PUBLISHED = {"AdaLog W4A4, ImageNet": 0.671, "FIMA-Q W4A4, ImageNet": 0.668, "dense, ImageNet": 0.722}
"""Published top-1 of DeiT-Tiny; measured rows are on other images."""
FOUR: dict[str, Any] = {"bits": 4, "activation_bits": 4, "first_last_bits": 8, "attention": True, "calibrate": "mse"}
ARMS = {
    "W4A4": Ptq(**FOUR, reduce_range=False),
    "W4A4, rotated": Ptq(**FOUR, rotate=True, reduce_range=False),
    "INT8": Ptq(reduce_range=False),
    "INT8, static and symmetric": Ptq(symmetric=True, smooth=False, activation_scaling="none", rounding="nearest",
                                      bias_correction=False, reduce_range=False),
    "FP8": Ptq(format="fp8"),
}  # fmt: skip


def post_training_rows(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield top-1, agreement and SQNR on both sets; for FP8 also the checks of its file."""
    dense = trace_timm(MODEL, {}, SHARED / "deit_tiny" / "model.safetensors")
    data = load_data(Data(kind="imagefolder", root=str(require_shared("imagenette")), calibration=256,
                          also_evaluate={"samples": str(SHARED / "imagenet_samples")}), dense.source, 0)  # fmt: skip
    sets = {"val": data.val, **data.extra}
    reference = classes_of(folder_of(root, "dense"), dense, sets)
    logits = load_file(folder_of(root, "dense") / "logits.safetensors")
    yield "dense", {f"top1_{n}": _share(reference[n], torch.as_tensor(one.labels)) for n, one in sets.items()}
    for name, config in ARMS.items():
        folder = folder_of(root, name)
        graph = make_model(folder, dense, [make_stage(config)], data).graph
        found = classes_of(folder, graph, sets)
        own = load_file(folder / "logits.safetensors")
        row: dict[str, Any] = {}
        for key, one in sets.items():
            row |= {f"top1_{key}": _share(found[key], torch.as_tensor(one.labels)),
                    f"agreement_{key}": _share(found[key], reference[key]),
                    f"sqnr_db_{key}": sqnr_db(logits[key], own[key])}  # fmt: skip
        yield name, row | (_file_checks(folder, graph, data) if name == "FP8" else {})


def _file_checks(folder: Path, graph: ModelGraph, data: DataModule) -> dict[str, Any]:
    """Return the size of the file, its largest difference from the graph, and the violations that `inspect` finds."""
    path = folder / "model.onnx"
    export_onnx(graph, path, PORTABLE)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    images = next(iter(data.calibration.batches(PARITY_IMAGES)))[0]
    with torch.no_grad():
        parity = compare_outputs(graph.module(images), OnnxFile(path)(images))
    return {"onnx_mb": path.stat().st_size / 1e6, "parity_relative_error": parity.relative_error,
            "violations": len(inspect(path, layers=True).violations)}  # fmt: skip


def _share(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first == second).float().mean())
